"""`kensho status`: how things stand, in one sentence and then in detail. Never uses the network."""

import argparse
from datetime import UTC, datetime

from kensho.base.units import size_text
from kensho.cli import exits
from kensho.cli.main import Context, Result

CODES = {"degraded": exits.DEGRADED, "damaged": exits.DAMAGED, "storage-missing": exits.FAILURE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # nothing to choose


def run(context: Context) -> Result:
    output = context.output
    with context.open_app(has_log=False) as app:
        status = app.status()
    output.data(status.sentence)
    for model in status.models:
        previous = f", {model.previous} is ready to go back to" if model.previous else ""
        output.data(f"  {model.model} {model.version}: {model.state}, {size_text(model.size_bytes)}{previous}")
    if status.last_check is not None:
        at = datetime.fromtimestamp(status.last_check.at_wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        output.data(f"  last check: {status.last_check.kind}, {at}")
    return Result(CODES.get(status.state, exits.OK), status.as_json())
