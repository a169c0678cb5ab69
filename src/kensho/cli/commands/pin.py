"""`kensho pin MODEL V`: hold a model at a version; `kensho pin MODEL --release`: follow the newest again."""

from kensho.base.errors import UsageError
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("model", metavar="MODEL")
    arguments.add_argument("version", metavar="V", nargs="?", help="installed, or to be brought by the next pull")
    arguments.add_argument("--release", action="store_true", help="hold no longer")


def run(context: Context) -> Result:
    model, version, is_released = context.args.model, context.args.version, context.args.release
    if (version is None) != is_released:
        raise UsageError("pin takes either a version or --release", advice=f"kensho pin {model} V")
    with context.open_app() as app:
        app.pin(model, version)
        current = {m.model: m.version for m in app.status().models}[model]
    if is_released:
        context.output.data(f"{model} is held no longer; the next pull brings the newest version")
    elif version == current:
        context.output.data(f"{model} is held at {version}, which is in use; no pull changes it")
    else:
        context.output.data(f"{model} is held at {version}; {current} is in use until the next pull")
    return Result(keys={"version": version})
