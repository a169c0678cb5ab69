"""`kensho prune --to REPO --keep N`: remove old releases from a repository, breaking no pull that is under way."""

from datetime import UTC, datetime
from pathlib import Path

from kensho.base.units import size_text
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("--to", required=True, metavar="REPO", type=Path)
    arguments.add_argument("--keep", required=True, metavar="N", type=int, help="releases of each model that stay")
    arguments.add_argument(
        "--keys", metavar="KEYS", type=Path, help="to sign metadata that names the old releases no more"
    )
    arguments.add_argument(
        "--grace",
        metavar="DAYS",
        type=float,
        help="keep files so long (default: until a day after today's timestamp expires)",
    )
    arguments.add_argument("--expires", metavar="DAYS", type=int, help="days until the new metadata must be renewed")


def run(context: Context) -> Result:
    from kensho.delivery.prune import prune

    args, output = context.args, context.output
    now = datetime.fromtimestamp(context.clock.wall_s(), UTC)
    report = prune(args.to, args.keys, keep=args.keep, now=now, grace_days=args.grace, expires_days=args.expires)
    output.data(f"{size_text(report.bytes_freed)} freed")
    if report.releases:
        names = ", ".join(f"{ref.model} {ref.version}" for ref in report.releases)
        output.note(f"removed: {names}" if args.keys else f"still named, for want of --keys: {names}")
    until = report.waiting_until
    if until is not None:
        output.note(
            f"{size_text(report.bytes_waiting)} more may still be wanted by a pull under way: "
            f"run this again after {until:%Y-%m-%d %H:%M} UTC"
        )
    return Result(
        keys={
            "bytes_freed": report.bytes_freed,
            "bytes_waiting": report.bytes_waiting,
            "waiting_until": until.isoformat() if until else None,
            "removed": [{"model": ref.model, "version": ref.version} for ref in report.releases],
        }
    )
