"""What `kensho` understands of its arguments is a part of what argparse would understand."""

import argparse
import importlib
from typing import NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import UsageError
from kensho.cli.arguments import Arguments
from kensho.cli.usage import COMMANDS, GLOBAL_OPTIONS

WORDS = [
    *("m", "1.0", "a b", "-3", "-2.5", "", "é", "7", "raw", "-", "-x", "--json", "--store", "--store=s", "--nonsense"),
    *("--max-tokens", "--max-tokens=4", "--tier", "--tier=nonsense", "--release", "--full", "--to", "--to=x", "--keep"),
]
CHOSEN = ("run", "pin", "pull", "prune", "verify", "status")


class Refused(Exception):
    pass


class Reference(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Refused(message)


def of_command(command: str) -> Arguments:
    arguments = Arguments(f"kensho {command}", COMMANDS[command])
    importlib.import_module(f"kensho.cli.commands.{command}").add_arguments(arguments)
    arguments.add_everywhere(GLOBAL_OPTIONS)
    return arguments


def reference(command: str) -> Reference:
    parser = Reference(allow_abbrev=False)
    importlib.import_module(f"kensho.cli.commands.{command}").add_arguments(parser)
    for name, value, _ in GLOBAL_OPTIONS:
        parser.add_argument(name, action="store" if value else "store_true")
    return parser


@settings(max_examples=60)
@given(command=st.sampled_from(CHOSEN), argv=st.lists(st.sampled_from(WORDS)))
def test_what_is_understood_means_what_argparse_makes_of_it(command: str, argv: list[str]) -> None:
    try:
        found = vars(of_command(command).read(argv))
    except UsageError as refused:
        assert refused.advice == f"see kensho {command} --help"
        return
    assert found == vars(reference(command).parse_intermixed_args(argv))


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "kensho run needs MODEL"),
        (["m"], "kensho run needs PROMPT"),
        (["m", "p", "more"], "kensho run does not know what to do with 'more'"),
        (["m", "p", "--nonsense=1"], "kensho run has no option '--nonsense'"),
        (["m", "p", "--seed", "--json"], "--seed needs a value: --seed N"),
        (["m", "p", "--seed"], "--seed needs a value: --seed N"),
        (["m", "p", "--seed", "x"], "--seed cannot be 'x'"),
        (["m", "p", "--temperature=hot"], "--temperature cannot be 'hot'"),
        (["m", "p", "--json=yes"], "--json takes no value"),
        (["m", "p", "--tier", "x"], "--tier cannot be 'x': use auto, raw, mapped, mixed, packed"),
    ],
)
def test_a_refusal_says_what_is_wrong(argv: list[str], reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        of_command("run").read(argv)
    assert refused.value.message == reason


def test_after_two_dashes_nothing_is_an_option() -> None:
    values = of_command("run").read(["--json", "m", "--", "--quiet"])
    assert (values.model, values.prompt, values.json, values.quiet) == ("m", "--quiet", True, False)
    assert of_command("pull").read(["--", "--", "-x"]).models == ["--", "-x"]


def test_a_required_option_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"kensho init needs --from URL, --root ROOT\.json"):
        of_command("init").read([])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_argument(command: str) -> None:
    arguments, text = of_command(command), of_command(command).help_text()
    assert text.startswith(f"usage: kensho {command}")
    for action in reference(command)._actions:
        names = action.option_strings or [str(action.metavar or "")]
        assert all(name in text for name in names)
        assert (action.help or "") in text or action.dest == "help"
    assert max(map(len, text.splitlines())) <= 120
    assert arguments.help_text() == text
