"""`kensho demo`: the whole story on embedded parts."""

from pathlib import Path

from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument(
        "--keep", metavar="DIR", type=Path, help="play in this folder (default: beside the store, emptied each time)"
    )


def run(context: Context) -> Result:
    from kensho.demo.story import tell

    store = context.settings.store
    folder = (context.args.keep or store.with_name(store.name + "-demo")).absolute()
    report = tell(context.settings, context.output, clock=context.clock, folder=folder)
    for line in report.lines():
        context.output.data(line)
    steps = [{"name": step.name, "ok": step.is_ok, "seconds": round(step.seconds, 3)} for step in report.steps]
    keys = {"steps": steps, "seconds": round(report.seconds, 3), "log": str(report.log)}
    return Result(exits.OK if report.is_ok else exits.FAILURE, keys, report.error)
