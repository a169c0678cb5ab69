"""`kensho status`: how things stand, in one sentence and then in detail. Never uses the network."""

import argparse
from datetime import UTC, datetime

from kensho.base.errors import Damaged, KenshoError, StorageError
from kensho.base.units import size_text
from kensho.cli import exits
from kensho.cli.main import Context, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # nothing to choose


def run(context: Context) -> Result:
    output = context.output
    with context.open_app(has_log=False) as app:
        status = app.status()
    if status.state not in ("damaged", "storage-missing"):  # those are told as errors
        output.data(status.sentence)
    for model in status.models:
        previous = f", {model.previous} is ready to go back to" if model.previous else ""
        output.data(f"  {model.model} {model.version}: {model.state}, {size_text(model.size_bytes)}{previous}")
    if status.last_check is not None:
        at = datetime.fromtimestamp(status.last_check.at_wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        output.data(f"  last check: {status.last_check.kind}, {at}")
    error: KenshoError | None = None
    if status.state == "damaged":
        error = Damaged(status.sentence, advice="run kensho repair")
    elif status.state == "storage-missing":
        error = StorageError(status.sentence, advice="run kensho init --from URL --root ROOT.json")
    code = exits.DEGRADED if status.state == "degraded" else exits.exit_code(error) if error else exits.OK
    return Result(code, status.as_json(), error)
