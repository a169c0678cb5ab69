"""`kensho pull [MODEL...]`: bring models to their newest version."""

from kensho.base.units import size_text
from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("models", metavar="MODEL", nargs="*", help="default: all installed models")


def run(context: Context) -> Result:
    output = context.output
    with context.open_app() as app:
        report = app.pull(context.args.models)
    for model in report.models:
        output.data(
            f"{model.model} {model.version or '-'}: {model.state}" + (f" ({model.reason})" if model.reason else "")
        )
    output.note(
        f"{size_text(report.bytes_fetched)} fetched in {report.requests} requests, "
        f"{size_text(report.bytes_reused)} reused, {report.seconds:.1f} s"
        + (f"; {size_text(report.bytes_freed)} of old versions freed" if report.bytes_freed else "")
    )
    keys = {
        "models": [
            {"model": m.model, "version": m.version, "state": m.state, "reason": m.reason} for m in report.models
        ],
        "bytes_fetched": report.bytes_fetched,
        "bytes_reused": report.bytes_reused,
        "bytes_patched": report.bytes_patched,
        "bytes_freed": report.bytes_freed,
        "requests": report.requests,
        "requests_metadata": report.requests_metadata,
        "seconds": round(report.seconds, 3),
    }
    if report.first_error is not None:
        error = report.first_error
        return Result(exits.exit_code(error), {**error.facts, **keys}, error)
    is_degraded = any(m.state == "degraded" for m in report.models)
    return Result(exits.DEGRADED if is_degraded else exits.OK, keys)
