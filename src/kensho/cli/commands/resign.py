"""`kensho resign --to REPO --keys KEYS`: a new timestamp, and new signatures for what has expired or soon will.

With `--rotate ROLE`, another key for the role instead.
"""

from datetime import UTC, datetime
from pathlib import Path

from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result

ROLES = ("root", "targets", "snapshot", "timestamp")


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("--to", required=True, metavar="REPO", type=Path)
    arguments.add_argument("--keys", required=True, metavar="KEYS", type=Path)
    arguments.add_argument(
        "--rotate", metavar="ROLE", choices=ROLES, help=f"another key for a role: {', '.join(ROLES)}"
    )
    arguments.add_argument("--expires", metavar="DAYS", type=int, help="days until the metadata must be renewed")


def run(context: Context) -> Result:
    from kensho.delivery.repository import resign

    args = context.args
    now = datetime.fromtimestamp(context.clock.wall_s(), UTC)
    versions = resign(args.to, args.keys, rotate=args.rotate, now=now, expires_days=args.expires)
    signed = ", ".join(f"{role} version {version}" for role, version in versions.items())
    context.output.data(f"signed anew: {signed or 'nothing'}")
    if args.rotate:
        context.output.note(
            f"{args.rotate}.pem and {args.rotate}.pub in {args.keys} are new: bring them where they are kept"
        )
    return Result(keys={"versions": versions})
