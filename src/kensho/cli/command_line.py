"""The command line as a whole: which command, with which values, or the help that was asked for. Light."""

import importlib
from types import ModuleType, SimpleNamespace

from kensho import __version__
from kensho.base.errors import UsageError
from kensho.cli.arguments import Arguments
from kensho.cli.usage import COMMANDS, GLOBAL_OPTIONS, help_text, words_of


class Said(Exception):
    """All that was wanted is this text."""


def parse(given: list[str]) -> tuple[SimpleNamespace, ModuleType]:
    """The values of the arguments, and the command's module, the only one that is imported. Raises UsageError.

    Global options may stand before or after the command.
    """
    at = next(iter(words_of(given)), len(given))
    name = given[at] if at < len(given) else None
    _say_at_once(given[:at])
    if name not in COMMANDS:
        reason = f"there is no command {name[:80]!r}" if name else "no command was given"
        raise UsageError(reason, advice="see kensho --help")
    arguments = Arguments(f"kensho {name}", COMMANDS[name])
    module = importlib.import_module(f"kensho.cli.commands.{name}")
    module.add_arguments(arguments)
    arguments.add_everywhere(GLOBAL_OPTIONS)
    options = given[at + 1 :]
    if not {"-h", "--help"}.isdisjoint(options[: options.index("--")] if "--" in options else options):
        raise Said(arguments.help_text())
    values = arguments.read([*given[:at], *options])
    values.command = name
    return values, module


def _say_at_once(arguments: list[str]) -> None:
    """What stands before the command: `kensho --help` and `kensho --version`."""
    for option, text in (("-h", help_text()), ("--help", help_text()), ("--version", f"kensho {__version__}\n")):
        if option in arguments:
            raise Said(text)
