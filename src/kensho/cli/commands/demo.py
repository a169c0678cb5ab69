"""`kensho demo`: the whole story on embedded parts."""

import argparse

from kensho.cli import exits
from kensho.cli.main import Context, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", metavar="DIR", help="play in this folder and keep it (default: a temporary one)")


def run(context: Context) -> Result:
    from kensho.demo.story import tell

    report = tell(context.settings, context.output, clock=context.clock, folder=context.args.keep)
    steps = [{"name": step.name, "ok": step.is_ok, "seconds": round(step.seconds, 3)} for step in report.steps]
    return Result(exits.OK if report.is_ok else exits.FAILURE, {"steps": steps, "seconds": round(report.seconds, 3)})
