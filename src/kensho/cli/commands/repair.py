"""`kensho repair`: mend what verify finds, from other local bytes first, then the network."""

from kensho.base.errors import Damaged
from kensho.base.units import size_text
from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    del arguments  # nothing to choose


def run(context: Context) -> Result:
    output = context.output
    with context.open_app() as app:
        report = app.repair()
    keys = {
        "repaired_chunks": report.repaired_chunks,
        "bytes_fetched": report.bytes_fetched,
        "unrepaired": list(report.unrepaired),
    }
    output.data(f"{report.repaired_chunks} chunks mended, {size_text(report.bytes_fetched)} fetched")
    if report.unrepaired:
        error = Damaged(
            "still damaged: " + ", ".join(report.unrepaired),
            advice="connect to the source (see kensho doctor) and run kensho repair again",
        )
        return Result(exits.DAMAGED, keys, error)
    return Result(keys=keys)
