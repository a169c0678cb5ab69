"""`kensho init --from URL --root ROOT.json`: make the store and trust this root."""

import argparse
from pathlib import Path

from kensho.base.errors import UsageError
from kensho.cli.main import Context, Result

MAX_ROOT_BYTES = 512_000
"""python-tuf's own limit for root metadata."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", required=True, metavar="URL", dest="url", help="http(s)://, or file:// (folder, USB)")
    parser.add_argument("--root", required=True, metavar="ROOT.json", type=Path, help="given to you by the publisher")


def run(context: Context) -> Result:
    root = read_root(context.args.root)
    with context.open_app() as app:
        version = app.init(context.args.url, root)
    context.output.data(f"store {context.settings.store} trusts root version {version} of {context.args.url}")
    return Result(keys={"root_version": version})


def read_root(path: Path) -> bytes:
    """The bytes of a root file, bounded. UsageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ROOT_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"root file {path} cannot be read: {error.strerror}", advice="ask the publisher for it"
        ) from error
    if len(data) > MAX_ROOT_BYTES:
        raise UsageError(f"root file {path} is larger than 512 kB", advice="ask the publisher for the right file")
    return data
