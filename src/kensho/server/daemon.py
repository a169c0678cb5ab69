"""`kensho serve` from its beginning to its end: one process that holds a store's models warm and answers for it.

    await serve(app, choose, stop=stop, on_ready=lambda http: print(http.url), clock=clock)

The order of the start is that of what can refuse: a second daemon, a port in use, a socket that cannot be made. The
end takes no more, lets running answers finish within the setting `stop_s`, then ends them. Engines belong to the
application: who opened it closes it afterwards.
"""

import asyncio
import os
import secrets
from collections.abc import Callable

from starlette.types import ASGIApp

from kensho.app import Kensho
from kensho.base.clock import Clock
from kensho.base.errors import StoreMissing
from kensho.base.events import DaemonStarted, DaemonStopped
from kensho.server.control import Choose, ControlServer
from kensho.server.daemon_lock import DaemonLock
from kensho.server.descriptors import http_places
from kensho.server.host_guard import LOOPBACK_NAMES
from kensho.server.http_app import make_http_app
from kensho.server.http_server import HttpServer
from kensho.server.library_words import library_words_heard


async def serve(
    app: Kensho, choose: Choose, *, stop: asyncio.Event, on_ready: Callable[[HttpServer], None], clock: Clock
) -> None:
    """Returns after `stop`. `on_ready` is called once everything answers. Raises DaemonRunning, PortInUse,
    ConfigError and StorageError before that."""
    settings, store = app.settings, app.settings.store
    if (await asyncio.to_thread(app.status)).state == "storage-missing":
        raise StoreMissing(f"there is no store in {store}", advice="run kensho init --from URL --root ROOT.json")
    began_s = clock.monotonic_s()
    with DaemonLock(store, clock=clock), library_words_heard(app.emit):
        http = HttpServer(
            settings.http_host,
            settings.http_port,
            is_remote_allowed=settings.http_remote,
            places=http_places(),
            emit=app.emit,
        )
        control = ControlServer(store, choose, emit=app.emit)
        try:
            await control.start()
            await http.start(_http_app(app, http, clock))
            app.emit(DaemonStarted(url=http.url, pid=os.getpid()))
            on_ready(http)
            await stop.wait()
        finally:
            await asyncio.gather(control.close(grace_s=settings.stop_s), http.close(grace_s=settings.stop_s))
    app.emit(DaemonStopped(seconds=clock.monotonic_s() - began_s))


def _http_app(app: Kensho, http: HttpServer, clock: Clock) -> ASGIApp:
    settings = app.settings
    return make_http_app(
        app,
        names=(*LOOPBACK_NAMES, http.address, settings.http_host, *settings.http_names),
        token=lambda: secrets.token_hex(12),
        draw_seed=lambda: secrets.randbits(63),
        abort=http.abort,
        clock=clock,
    )
