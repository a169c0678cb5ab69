"""`kensho`: finds the command, gives it settings and a voice, turns what happened into one exit code.

A command is a line of `usage.COMMANDS` and a module of `kensho.cli.commands` with `add_arguments(parser)` and
`run(context) -> Result`. Only the chosen command's module is imported. No traceback reaches a user unless `--debug`
asks for it. The console script comes here by way of `entry`. What a daemon runs too (`commands.serve`) has the part
that both share in `act(context, app)`.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from kensho.base.clock import SystemClock
from kensho.base.errors import KenshoError
from kensho.cli import exits
from kensho.cli.command_line import Said, parse
from kensho.cli.context import Context, Result
from kensho.cli.output import Output
from kensho.settings import load_settings

if TYPE_CHECKING:
    from kensho.runtime.hosts.prefork import Prefork


def main(argv: Sequence[str] | None = None, *, first_host: "Prefork | None" = None) -> int:
    """Run one command; returns its exit code. `first_host` stays the caller's to close."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    clock = SystemClock()
    is_json = "--json" in arguments
    output = Output(is_json=is_json, is_quiet="--quiet" in arguments, clock=clock)
    try:
        args, command = parse(arguments)
        settings = load_settings(_overrides(args), defaults=_DAEMON if args.command == "serve" else None)
        result: Result = command.run(Context(args, settings, output, clock, first_host))
    except Said as text:
        sys.stdout.write(str(text))
        return exits.OK
    except KenshoError as error:
        if "--debug" in arguments:
            raise
        return tell_error(output, error)
    except KeyboardInterrupt:
        return tell_interrupted(output)
    except BrokenPipeError:  # the reader went away, as in `kensho ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return exits.FAILURE
    except Exception as error:
        if "--debug" in arguments:
            raise
        return tell_error(output, error)
    output.summary(result.code, result.keys, result.error)
    return result.code


def tell_error(output: Output, error: Exception) -> int:
    """Say why the command failed; the exit code."""
    if not isinstance(error, KenshoError):
        unexpected = KenshoError(
            f"unexpected {type(error).__name__}: {error}", advice="this is a fault in Kensho; --debug shows where"
        )
        output.summary(exits.FAILURE, {}, unexpected)
        return exits.FAILURE
    code = exits.exit_code(error)
    output.summary(code, error.facts, error)
    return code


def tell_interrupted(output: Output) -> int:
    """Say that somebody stopped the command; the exit code."""
    output.summary(exits.INTERRUPTED, {}, KenshoError("interrupted", advice="run the same command again to go on"))
    return exits.INTERRUPTED


_ONE_ANSWER: Mapping[str, object] = {"standby": "on_demand", "scrub": False, "warm": (), "warm_up": False}
"""One answer and out: a second engine is only worth its start when the first one fails, and nothing else is begun."""
_DAEMON: Mapping[str, object] = {"scrub": True, "warm_up": True}
"""What a daemon does unless the configuration says otherwise."""


def _overrides(args: SimpleNamespace) -> dict[str, object]:
    given = vars(args)
    return {
        "store": given.get("store"),
        "config": given.get("config"),
        "network": False if given.get("no_network") else None,
        "tier": given.get("tier"),
        "allow_faults": given.get("allow_faults") or None,
        "http_remote": given.get("http_remote") or None,
        **{name: given.get(name) for name in ("http_host", "http_port", "http_names", "warm")},
        **(_ONE_ANSWER if given.get("command") in {"run", "warm"} else {}),
    }
