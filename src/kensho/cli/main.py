"""`kensho`: finds the command, gives it settings and a voice, turns what happened into one exit code.

A command is a module of `kensho.cli.commands` with `HELP`, `add_arguments(parser)` and `run(context) -> Result`.
Only the chosen command's module is imported, so `kensho --help` stays fast. No traceback reaches a user unless
`--debug` asks for it.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from kensho import __version__
from kensho.base.clock import Clock, SystemClock
from kensho.base.errors import KenshoError, UsageError
from kensho.base.structs import Struct, field
from kensho.cli import exits
from kensho.cli.output import Output
from kensho.settings import Settings, load_settings

if TYPE_CHECKING:
    from kensho.app import Kensho

COMMANDS: Mapping[str, str] = {
    "demo": "the whole story on real parts, in less than a minute",
    "keygen": "make the publisher's signing keys",
    "publish": "cut, pack and sign a model folder into a repository",
    "resign": "renew the signatures of a repository before they expire",
    "prune": "remove old releases from a repository",
    "origin": "serve a repository over HTTP, for trials",
    "init": "make the store and trust a publisher's root",
    "plan": "what a pull would do, without doing it",
    "pull": "bring models to their newest version",
    "status": "how things stand, in one sentence and in detail",
    "verify": "check the stored bytes; never uses the network",
    "repair": "mend what verify finds",
    "rollback": "go back to the previous version, from this disk",
    "pin": "hold a model at a version, or let it go",
    "gc": "remove what nothing needs",
    "run": "one answer from a model, streamed",
    "warm": "compile and load models ahead, so that no user waits",
    "graphs": "the cache of compiled graphs: list, prune, clear",
    "doctor": "what is wrong, in words, each with a fix",
}


class Context(Struct):
    """What a command is given."""

    args: argparse.Namespace
    settings: Settings
    output: Output
    clock: Clock

    def open_app(self, *, has_log: bool = True) -> "Kensho":
        """The application on these settings, its events told by this command's output. Use it with `with`."""
        from kensho.app import Kensho

        return Kensho(self.settings, clock=self.clock, listener=self.output.on_event, has_log=has_log)


class Result(Struct):
    """How a command ended: the exit code, the keys of its summary and, where it failed after doing something, why."""

    code: int = exits.OK
    keys: Mapping[str, object] = field(factory=dict)
    error: KenshoError | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    clock = SystemClock()
    is_json = "--json" in arguments
    output = Output(is_json=is_json, is_quiet="--quiet" in arguments, clock=clock)
    try:
        args, command = _parse(arguments)
        settings = load_settings(_overrides(args))
        result: Result = command.run(Context(args, settings, output, clock))
    except SystemExit as stop:  # argparse: --help, --version, or a usage error that it has explained on stderr
        code: int = stop.code if isinstance(stop.code, int) else exits.USAGE
        if code and is_json:
            output.summary(code, {}, UsageError("the arguments make no sense", advice="see kensho --help"))
        return code
    except KenshoError as error:
        if "--debug" in arguments:
            raise
        code = exits.exit_code(error)
        output.summary(code, error.facts, error)
        return code
    except KeyboardInterrupt:
        output.summary(exits.INTERRUPTED, {}, KenshoError("interrupted", advice="run the same command again to go on"))
        return exits.INTERRUPTED
    except BrokenPipeError:  # the reader went away, as in `kensho ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILURE
    except Exception as error:
        if "--debug" in arguments:
            raise
        unexpected = KenshoError(
            f"unexpected {type(error).__name__}: {error}", advice="this is a fault in Kensho; --debug shows where"
        )
        output.summary(exits.FAILURE, {}, unexpected)
        return exits.FAILURE
    output.summary(result.code, result.keys, result.error)
    return result.code


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, ModuleType]:
    """Global options may stand before or after the command."""
    name = next((word for word in _words(arguments) if word in COMMANDS), None)
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    _add_global_options(shared)
    parser = argparse.ArgumentParser(
        prog="kensho",
        description="Keeps AI models working on machines that nobody watches.",
        epilog="Exit codes: 0 ok, 1 failure, 2 usage, 3 degraded, 4 damaged, 5 trust refused, 6 no space, "
        "7 network needed, 8 no daemon, 9 overloaded, 130 interrupted.",
        parents=[shared],
    )
    parser.add_argument("--version", action="version", version=f"kensho {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module: ModuleType | None = None
    for command, text in COMMANDS.items():
        child = commands.add_parser(command, help=text, description=text, parents=[shared])
        if command == name:
            module = importlib.import_module(f"kensho.cli.commands.{command}")
            module.add_arguments(child)
    args = parser.parse_args(arguments)
    if module is None:
        raise UsageError("no command was given", advice="see kensho --help")
    return args, module


def _words(arguments: Sequence[str]) -> list[str]:
    """Arguments without options and without the values of the global options that have one."""
    words, skip = [], False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in ("--store", "--config"):
            skip = True
        elif not argument.startswith("-"):
            words.append(argument)
    return words


def _add_global_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("everywhere")
    group.add_argument(
        "--store", metavar="DIR", help="folder of the store (else KENSHO_STORE, else the XDG data folder)"
    )
    group.add_argument("--json", action="store_true", help="JSON lines on stdout, the last one a summary")
    group.add_argument("--quiet", action="store_true", help="no notes and no progress")
    group.add_argument("--no-network", action="store_true", help="never try a connection")
    group.add_argument("--config", metavar="FILE", help="settings in TOML")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _overrides(args: argparse.Namespace) -> dict[str, object]:
    given = vars(args)
    return {
        "store": given.get("store"),
        "config": given.get("config"),
        "network": False if given.get("no_network") else None,
        "tier": given.get("tier"),
        # one answer and out: a second engine is only worth its start when the first one fails
        "standby": "on_demand" if given.get("command") in {"run", "warm"} else None,
    }
