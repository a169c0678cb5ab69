"""`kensho rollback MODEL [--to V]`: the previous version again, from this disk, in seconds."""

from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("model", metavar="MODEL")
    arguments.add_argument("--to", metavar="V", help="an installed version (default: the previous one)")


def run(context: Context) -> Result:
    with context.open_app() as app:
        version = app.rollback(context.args.model, context.args.to)
    model = context.args.model
    context.output.data(
        f"{model} is {version} again; the next pull brings the newest, `kensho pin {model} {version}` holds it"
    )
    return Result(keys={"version": version})
