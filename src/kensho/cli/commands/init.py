"""`kensho init --from URL --root ROOT.json`: make the store and trust this root."""

from pathlib import Path

from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument(
        "--from", required=True, metavar="URL", dest="url", help="http(s)://, or file:// (folder, USB)"
    )
    arguments.add_argument(
        "--root", required=True, metavar="ROOT.json", type=Path, help="given to you by the publisher"
    )


def run(context: Context) -> Result:
    from kensho.app.deliveries import read_root

    root = read_root(context.args.root)
    with context.open_app() as app:
        version = app.init(context.args.url, root)
    context.output.data(f"store {context.settings.store} trusts root version {version} of {context.args.url}")
    return Result(keys={"root_version": version})
