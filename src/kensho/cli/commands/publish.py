"""`kensho publish SRC --model NAME --version V --to REPO --keys KEYS`: one signed release of a model."""

from pathlib import Path

from kensho.base.units import size_text
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("source", metavar="SRC", type=Path, help="a model folder, such as one from Hugging Face")
    arguments.add_argument("--model", required=True, metavar="NAME")
    # --version is global; after `publish` it names the release
    arguments.add_argument("--version", required=True, metavar="V", dest="release_version")
    arguments.add_argument(
        "--to", required=True, metavar="REPO", type=Path, help="folder that any web server can serve"
    )
    arguments.add_argument("--keys", required=True, metavar="KEYS", type=Path, help="folder made by kensho keygen")
    arguments.add_argument("--optional", action="store_true", help="a machine may go without this model")
    arguments.add_argument("--fallback", metavar="NAME", help="model that answers when this one cannot be had")
    arguments.add_argument("--changelog", metavar="TEXT", default="")
    arguments.add_argument("--min-client", metavar="V", default="0.1.0", help="oldest Kensho that can use this release")
    arguments.add_argument(
        "--rollout", metavar="PERCENT", type=int, default=100, help="share of the machines that get it (default 100)"
    )
    arguments.add_argument("--expires", metavar="DAYS", type=int, help="days until the metadata must be renewed")


def run(context: Context) -> Result:
    from kensho.app.publishing import FILE_NAME, MAX_FILE_BYTES, made_files
    from kensho.delivery.published_file import read_published
    from kensho.delivery.publisher import publish

    args, output = context.args, context.output

    def earlier() -> bytes | None:
        return read_published(args.to, args.model, FILE_NAME, max_bytes=MAX_FILE_BYTES)

    with context.open_app(has_log=False) as app, made_files(args.source, earlier) as made:
        report = publish(
            args.source,
            args.to,
            args.keys,
            model=args.model,
            version=args.release_version,
            is_required=not args.optional,
            fallback_model=args.fallback,
            changelog=args.changelog,
            min_client=args.min_client,
            rollout_percent=args.rollout,
            expires_days=args.expires,
            now=app.now(),
            progress=lambda done, total: output.progress(f"publish {args.model}", done, total, "bytes"),
            emit=app.emit,
            made=made.files,
        )
    output.data(
        f"published {args.model} {args.release_version}: {report.files} files, {report.chunks} chunks, "
        f"{size_text(report.bytes_source)}, of which {size_text(report.bytes_packed)} are new in the repository"
    )
    if made.seconds:
        output.note(f"tokenizer tables built in {made.seconds:.1f} s: {size_text(made.size_bytes)}")
    elif made.size_bytes:
        output.note("the tokenizer tables of the release before still fit")
    elif made.reason:
        output.note(f"no tokenizer tables, machines load the tokenizer itself: {made.reason}")
    output.note(f"hand this root file to your machines, by a way you trust: {report.root}")
    return Result(
        keys={
            "files": report.files,
            "chunks": report.chunks,
            "bytes_source": report.bytes_source,
            "bytes_packed": report.bytes_packed,
            "patches": report.patches,
            "root": str(report.root),
            "tokenizer_tables": bool(made.size_bytes),
        }
    )
