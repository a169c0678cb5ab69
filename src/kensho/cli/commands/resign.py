"""`kensho resign --to REPO --keys KEYS`: a new timestamp, and new signatures for what has expired or soon will."""

import argparse
from datetime import UTC, datetime
from pathlib import Path

from kensho.cli.main import Context, Result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", required=True, metavar="REPO", type=Path)
    parser.add_argument("--keys", required=True, metavar="KEYS", type=Path)
    parser.add_argument("--expires", metavar="DAYS", type=int, help="days until the metadata must be renewed")


def run(context: Context) -> Result:
    from kensho.delivery.repository import resign

    args = context.args
    now = datetime.fromtimestamp(context.clock.wall_s(), UTC)
    versions = resign(args.to, args.keys, now=now, expires_days=args.expires)
    context.output.data("signed anew: " + ", ".join(f"{role} version {version}" for role, version in versions.items()))
    return Result(keys={"versions": versions})
