"""`kensho serve`: the daemon. It keeps models warm, runs commands for thin clients and answers over HTTP.

A command that it runs is the same code as without it: `act(context, app)` of the command's module, with the daemon's
application and a voice that ends at the client.
"""

import sys
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from types import ModuleType
from typing import TYPE_CHECKING

from kensho import __version__
from kensho.base.errors import NoDaemon, Overloaded, UsageError
from kensho.base.events import Event, RequestPoisoned, RequestRejected, StreamMoved
from kensho.base.structs import replace
from kensho.cli.arguments import Arguments
from kensho.cli.command_line import Said, parse
from kensho.cli.context import Context, Result
from kensho.cli.main import tell_error, tell_interrupted
from kensho.cli.output import Output

if TYPE_CHECKING:
    from kensho.app import Kensho
    from kensho.server.control_streams import Request, Streams
    from kensho.server.http_server import HttpServer


_CLIENT: "ContextVar[Streams | None]" = ContextVar("client", default=None)
"""Whose command a task works for."""


def add_arguments(arguments: Arguments) -> None:
    arguments.add_argument("--host", dest="http_host", metavar="H", help="address to listen on (default 127.0.0.1)")
    arguments.add_argument(
        "--port", dest="http_port", type=int, metavar="P", help="0 chooses a free one (default 8420)"
    )
    arguments.add_argument(
        "--names",
        dest="http_names",
        type=_names,
        metavar="A,B",
        help="names by which clients may call it, beside localhost",
    )
    arguments.add_argument("--warm", type=_names, metavar="M,N", help="models to load before anybody asks")
    arguments.add_argument(
        "--allow-remote", dest="http_remote", action="store_true", help="let --host be an address others reach"
    )
    arguments.add_argument("--allow-faults", action="store_true", help="let kensho fault make engines fail")
    arguments.add_argument("--tier", choices=("auto", "raw", "mapped", "mixed", "packed"), help="default: auto")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def run(context: Context) -> Result:
    import asyncio

    from kensho.server.descriptors import raise_limit
    from kensho.server.lossy_stderr import lossy_stderr

    raise_limit()
    with lossy_stderr() as stderr:
        output = Output(
            is_json=context.output.is_json, is_quiet=context.output.is_quiet, clock=context.clock, stderr=stderr
        )
        try:
            return asyncio.run(_serve(replace(context, output=output)))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None  # told to stop twice: running answers were not waited for


async def _serve(context: Context) -> Result:
    import asyncio
    import signal

    from kensho.app import Kensho
    from kensho.server.daemon import serve

    stop, loop, me = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()

    def end() -> None:
        if stop.is_set() and me:
            me.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, end)
    # Where a person watches, warnings are shown as they come. Elsewhere the log has them.
    listener = context.output.on_event if sys.stderr.isatty() else None
    app = await Kensho(context.settings, clock=context.clock, listener=listener).__aenter__()
    try:
        await serve(
            app,
            lambda request, streams: _choose(context, app, request, streams),
            stop=stop,
            on_ready=lambda http: _tell_ready(context, http),
            clock=context.clock,
        )
    finally:
        await app.aclose()
    return Result()


def _tell_ready(context: Context, http: "HttpServer") -> None:
    output = context.output
    output.json_line({"type": "listening", "url": http.url, "is_remote": http.is_remote})
    output.data(http.url)
    output.note(f"serving the models of {context.settings.store}; Ctrl-C ends it")
    if http.is_remote:
        output.note("warning: other machines reach it, and there is no password: who reaches it may use every model")


def _choose(daemon: Context, app: "Kensho", request: "Request", streams: "Streams") -> "Coroutine[None, None, int]":
    """The command, ready to be run by this daemon. Raises NotMine: the client then runs it, and tells what is wrong."""
    from kensho.server.control_streams import NotMine

    if request.about.get("version") != __version__:
        raise NotMine("another version of kensho")
    argv = list(request.argv)
    try:
        args, module = parse(argv)
    except (UsageError, Said) as reason:
        raise NotMine(str(reason)) from None
    if not hasattr(module, "act"):
        raise NotMine("not a command of a daemon's")
    settings, given = daemon.settings, vars(args)
    config = request.about.get("config") or ""
    differs = {
        "store": (args.store or "") != request.about.get("store"),
        "config": bool(args.config) or config not in ("", settings.config) or (config != "" and config[0] != "/"),
        "no-network": args.no_network and settings.network,
        "tier": given.get("tier") not in (None, settings.tier),
        "debug": args.debug,
    }
    others = [name for name, is_other in differs.items() if is_other]
    if others:
        raise NotMine(f"other settings: {', '.join(others)}")
    output = Output(
        is_json="--json" in argv, is_quiet="--quiet" in argv, clock=daemon.clock, stdout=streams.out, stderr=streams.err
    )
    if request.is_too_many and args.command != "status":
        return _refuse(output)
    return _act(module, Context(args, settings, output, daemon.clock), app, streams)


async def _refuse(output: Output) -> int:
    busy = Overloaded("the daemon runs as many commands as it can", advice="come back in a second", retry_after_s=1.0)
    return tell_error(output, busy)


def concerns(event: Event, models: Sequence[str | None], *, is_own: bool) -> bool:
    """Whether a client whose command is about these models hears of this. What goes wrong with a request is told to
    its own client, as the error of its command; `is_own`: the event comes from a task of this client's. The daemon's
    affairs are for its log."""
    if isinstance(event, RequestRejected | RequestPoisoned) or event.service == "app":
        return False
    return is_own if isinstance(event, StreamMoved) else getattr(event, "model", None) in models


async def _act(module: ModuleType, context: Context, app: "Kensho", streams: "Streams") -> int:
    from asyncio import CancelledError

    output, given = context.output, vars(context.args)
    models = (None, given.get("model"), *(given.get("models") or ()))
    _CLIENT.set(streams)  # for this task, and those that it starts

    def hear(event: Event) -> None:
        if concerns(event, models, is_own=_CLIENT.get() is streams):
            output.on_event(event)

    end = app.listen(hear)
    try:
        result: Result = await module.act(context, app)
    except CancelledError:
        if streams.ended_by == "daemon":
            stopping = NoDaemon("the daemon is stopping", advice="run the same command again: none is required")
            return tell_error(output, stopping)
        return tell_interrupted(output)
    except Exception as error:
        return tell_error(output, error)
    finally:
        end()
    output.summary(result.code, result.keys, result.error)
    return result.code
