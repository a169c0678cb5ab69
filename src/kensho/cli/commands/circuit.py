"""`kensho circuit ENGINE WORD`: a person's word about an engine of the running daemon (row S1)."""

from typing import TYPE_CHECKING

from kensho.base.errors import UsageError
from kensho.cli.arguments import Arguments
from kensho.cli.commands.fault import only_model
from kensho.cli.commands.level import no_daemon
from kensho.cli.context import Context, Result

if TYPE_CHECKING:
    from kensho.app import Kensho

WORDS = {"open": "FORCED_OPEN", "closed": "FORCED_CLOSED", "watch": "METRICS_ONLY", "auto": None}
"""auto: the circuit decides again, also one that was HARD_OPEN."""
MAX_S = 366 * 86400.0


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("engine", metavar="ENGINE", help="primary or standby")
    arguments.add_argument(
        "word",
        metavar="WORD",
        choices=tuple(WORDS),
        help="open, closed, watch (closed, but says when it would open) or auto (it decides)",
    )
    arguments.add_argument("--for", dest="for_s", type=float, metavar="SECONDS", help="default: until auto is said")
    arguments.add_argument("--model", metavar="M", help="default: the one that is loaded")


def run(context: Context) -> Result:
    raise no_daemon(context)


async def act(context: Context, app: "Kensho") -> Result:
    """Pass the word to the daemon's circuit."""
    from kensho.resilience.circuit import Mode

    args = context.args
    if args.for_s is not None and not 0 < args.for_s <= MAX_S:
        raise UsageError(f"--for cannot be {args.for_s:g}", advice="use a number of seconds, up to a year")
    model = args.model or only_model([loaded.model for loaded in app.loaded()])
    mode = WORDS[args.word]
    app.force_circuit(model, args.engine, None if mode is None else Mode(mode), for_s=args.for_s)
    circuits = {each.engine: each.circuit for one in app.loaded() if one.model == model for each in one.engines}
    state, reason = circuits[args.engine]["state"], circuits[args.engine]["reason"]
    context.output.data(f"engine {args.engine} of {model}: {state} ({reason})")
    return Result(keys={"model": model, "engine": args.engine, "state": state, "reason": reason})
