"""`kensho keygen KEYS`: the publisher's Ed25519 keys, one for each TUF role."""

from pathlib import Path

from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("keys", metavar="KEYS", type=Path, help="folder for the keys; made with mode 0700")


def run(context: Context) -> Result:
    from kensho.delivery.keys import keygen

    folder: Path = context.args.keys
    key_ids = keygen(folder)
    context.output.data(f"{len(key_ids)} keys in {folder} (private files are readable by you alone)")
    context.output.note("keep root.pem off this machine once the first release is out: it can replace all the others")
    return Result(keys={"key_ids": key_ids, "keys": str(folder)})
