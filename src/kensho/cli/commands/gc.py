"""`kensho gc`: remove what no installed version needs."""

from kensho.base.units import size_text
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    del arguments  # nothing to choose


def run(context: Context) -> Result:
    with context.open_app() as app:
        bytes_freed = app.gc()
    context.output.data(f"{size_text(bytes_freed)} freed")
    return Result(keys={"bytes_freed": bytes_freed})
