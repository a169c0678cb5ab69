"""`kensho serve` from its beginning to its end: one process that holds a store's models warm and answers for it.

    await serve(app, choose, stop=stop, on_ready=print, clock=clock)

The order of the start is that of what can refuse: a second daemon, a port in use, a socket that cannot be made. The
end takes no more, lets running answers finish within the setting `stop_s`, then ends them. Engines belong to the
application: who opened it closes it afterwards.
"""

import asyncio
import os
from collections.abc import Callable

from kensho.app import Kensho
from kensho.base.clock import Clock
from kensho.base.errors import StorageError
from kensho.base.events import DaemonStarted, DaemonStopped
from kensho.server.control import Choose, ControlServer
from kensho.server.daemon_lock import DaemonLock


async def serve(
    app: Kensho, choose: Choose, *, stop: asyncio.Event, on_ready: Callable[[str], None], clock: Clock
) -> None:
    """Returns after `stop`. `on_ready` gets the URL once everything answers. Raises DaemonRunning, PortInUse,
    ConfigError and StorageError before that."""
    store, grace_s = app.settings.store, app.settings.stop_s
    if (await asyncio.to_thread(app.status)).state == "storage-missing":
        raise StorageError(f"there is no store in {store}", advice="run kensho init --from URL --root ROOT.json")
    began_s = clock.monotonic_s()
    with DaemonLock(store, clock=clock):
        control = ControlServer(store, choose)
        await control.start()
        try:
            app.emit(DaemonStarted(url="", pid=os.getpid()))
            on_ready("")
            await stop.wait()
        finally:
            await control.close(grace_s=grace_s)
    app.emit(DaemonStopped(seconds=clock.monotonic_s() - began_s))
