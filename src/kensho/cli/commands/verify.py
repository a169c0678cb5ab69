"""`kensho verify [--full]`: check the stored bytes. Never uses the network."""

from kensho.base.errors import Damaged
from kensho.base.units import size_text
from kensho.cli import exits
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("--full", action="store_true", help="hash every byte, not only what has changed")


def run(context: Context) -> Result:
    output = context.output
    with context.open_app() as app:
        report = app.verify(is_full=context.args.full)
    damaged = [{"path": f"{d.model}/{d.version}/{d.path}", "chunks": list(d.chunks)} for d in report.damaged]
    keys = {
        "files": report.files,
        "chunks": report.chunks,
        "bytes_hashed": report.bytes_hashed,
        "damaged": damaged,
        "seconds": round(report.seconds, 3),
    }
    output.note(f"{report.files} files, {size_text(report.bytes_hashed)} hashed, {report.seconds:.2f} s")
    if damaged:
        for item in damaged:
            output.data(f"damaged: {item['path']}, chunks {item['chunks']}")
        error = Damaged(f"{len(damaged)} files are damaged", advice="run kensho repair")
        return Result(exits.DAMAGED, keys, error)
    output.data(
        "every byte is the publisher's" if context.args.full else "all files are as they were when last verified"
    )
    return Result(keys=keys)
