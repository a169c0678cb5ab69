"""`kensho plan [MODEL...]`: what a pull would do, without doing it."""

from kensho.base.units import size_text
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result

KEYS = ("bytes_fetch", "bytes_reuse", "bytes_patch", "bytes_disk_needed", "bytes_disk_free", "requests")


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("models", metavar="MODEL", nargs="*", help="default: all installed models")


def run(context: Context) -> Result:
    output = context.output
    with context.open_app() as app:
        plans = app.plan(context.args.models)
    for plan in plans:
        output.data(
            f"{plan.model} {plan.version}: fetch {size_text(plan.bytes_fetch)} in {plan.requests} requests, "
            f"reuse {size_text(plan.bytes_reuse)}; needs {size_text(plan.bytes_disk_needed)} of disk, "
            f"{size_text(plan.bytes_disk_free)} are free"
        )
    if not plans:
        output.data("nothing to do: what is newer is rolled out to other machines first")
    totals = {key: sum(getattr(plan, key) for plan in plans) for key in KEYS}
    totals["bytes_disk_free"] = min((plan.bytes_disk_free for plan in plans), default=0)
    return Result(keys={**totals, "models": [{"model": plan.model, "version": plan.version} for plan in plans]})
