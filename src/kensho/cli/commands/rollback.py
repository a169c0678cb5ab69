"""`kensho rollback MODEL [--to V]`: the previous version again, from this disk, in seconds."""

import argparse

from kensho.cli.main import Context, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--to", metavar="V", help="an installed version (default: the previous one)")


def run(context: Context) -> Result:
    with context.open_app() as app:
        version = app.rollback(context.args.model, context.args.to)
    model = context.args.model
    context.output.data(
        f"{model} is {version} again; the next pull brings the newest, `kensho pin {model} {version}` holds it"
    )
    return Result(keys={"version": version})
