"""`kensho fault ENGINE KIND`: make an engine of the running daemon misbehave, for a rehearsal (row S6)."""

from typing import TYPE_CHECKING

from kensho.base.errors import ConfigError, UsageError
from kensho.cli.arguments import Arguments
from kensho.cli.commands.level import no_daemon
from kensho.cli.context import Context, Result

if TYPE_CHECKING:
    from kensho.app import Kensho

KINDS = ("fail", "hang", "slow", "crash", "nan", "oom", "wrong", "truncate", "slow_start", "ignore_sigterm")


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("engine", metavar="ENGINE", help="primary or standby")
    arguments.add_argument("kind", metavar="KIND", choices=(*KINDS, "clear"), help=f"{', '.join(KINDS)}, or clear")
    arguments.add_argument("--times", type=int, default=1, metavar="N", help="requests that meet it (default 1)")
    arguments.add_argument("--model", metavar="M", help="default: the one that is loaded")


def run(context: Context) -> Result:
    raise no_daemon(context)


async def act(context: Context, app: "Kensho") -> Result:
    """Arm or clear the fault in the daemon's engine."""
    args = context.args
    if not context.settings.allow_faults:
        raise ConfigError("this daemon does not allow faults", advice="start it with kensho serve --allow-faults")
    if not 1 <= args.times <= 1000:
        raise UsageError(f"--times cannot be {args.times}", advice="use a number from 1 to 1000")
    model = args.model or only_model([loaded.model for loaded in app.loaded()])
    if args.kind == "clear":
        app.clear_faults(model, args.engine)
        context.output.data(f"engine {args.engine} of {model} works as it can")
    else:
        app.arm_fault(model, args.engine, args.kind, times=args.times)
        requests = "request" if args.times == 1 else f"{args.times} requests"
        context.output.data(f"engine {args.engine} of {model} meets the fault {args.kind!r} in its next {requests}")
    return Result(keys={"model": model, "engine": args.engine, "kind": args.kind, "times": args.times})


def only_model(models: list[str]) -> str:
    """The one that is meant when none is named."""
    names = list(dict.fromkeys(models))
    if len(names) == 1:
        return names[0]
    if not names:
        raise ConfigError("no model is loaded", advice="let one answer first: kensho warm MODEL")
    raise UsageError(f"several models are loaded: {', '.join(names)}", advice="name one with --model")
