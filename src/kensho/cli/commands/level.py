"""`kensho level SERVICE LEVEL`: change what the running daemon's log has, without a restart (row T1)."""

from typing import TYPE_CHECKING, get_args

from kensho.base.errors import NoDaemon
from kensho.base.events import Level, Service
from kensho.cli.arguments import Arguments
from kensho.cli.context import Context, Result

if TYPE_CHECKING:
    from kensho.app import Kensho


def add_arguments(arguments: Arguments) -> None:
    services, levels = get_args(Service), get_args(Level)
    arguments.add_argument("service", metavar="SERVICE", choices=services, help=", ".join(services))
    arguments.add_argument("level", metavar="LEVEL", choices=levels, help=", ".join(levels))


def run(context: Context) -> Result:
    raise no_daemon(context)


async def act(context: Context, app: "Kensho") -> Result:
    """Change it in the daemon's telemetry, from the next event on."""
    args = context.args
    app.set_level(args.service, args.level)
    context.output.data(f"the log has what {args.service} says at {args.level} and above")
    return Result(keys={"service": args.service, "level": args.level})


def no_daemon(context: Context) -> NoDaemon:
    """Why a command that is for a daemon runs without one."""
    from kensho.server.daemon_lock import running_daemon

    who = running_daemon(context.settings.store)
    if who is None:
        return NoDaemon("no daemon runs on this store", advice="start one with kensho serve")
    return NoDaemon(
        f"the daemon of this store ({who}) does not take this command",
        advice="ask as its user or as root, with its version of kensho and without other settings",
    )
