"""`kensho rollback MODEL [--to V]`: the previous version again, from this disk, in seconds."""

import argparse

from kensho.cli.main import Context, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--to", metavar="V", help="an installed version (default: the previous one)")


def run(context: Context) -> Result:
    with context.open_app() as app:
        version = app.rollback(context.args.model, context.args.to)
    context.output.data(
        f"{context.args.model} is {version} again; a pull goes forward when the publisher has a newer one"
    )
    return Result(keys={"version": version})
