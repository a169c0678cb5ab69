"""An engine host that is started before its graph is there: the process starts while the graph is found or built.

    hosts = EarlyHosts(supply)
    hosts.prepare(env=..., allow_faults=False)     # returns at once
    ...                                            # 0.2 s of building the raw graph
    EngineHost(..., hosts=hosts)                   # its start takes the prepared process
    await hosts.discard()                          # nobody took it

At most one is prepared: who comes second starts one as usual.
"""

import asyncio
from collections.abc import Mapping

from kensho.base.clock import Seconds
from kensho.base.errors import EngineError
from kensho.runtime.hosts.host_source import HostSource, NewHost

_REAP_S: Seconds = 2.0


class EarlyHosts:
    """A `HostSource` in front of another. Used from one event loop."""

    def __init__(self, source: HostSource) -> None:
        self._source = source
        self._prepared: tuple[bool, asyncio.Task[NewHost]] | None = None

    def prepare(self, *, env: Mapping[str, str], allow_faults: bool) -> None:
        """Begin to start a host, if none is prepared."""
        if self._prepared is None:
            starting = asyncio.create_task(_start(self._source, env, allow_faults), name="prepare-host")
            self._prepared = (allow_faults, starting)

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        """See `HostSource.start`. A prepared host that does not come up is no failure: another is started."""
        if self._prepared is not None and self._prepared[0] == allow_faults:
            (_, starting), self._prepared = self._prepared, None
            try:
                return await asyncio.shield(starting)
            except EngineError:
                pass
            except asyncio.CancelledError:
                await _end(starting)
                raise
        return await self._source.start(env=env, allow_faults=allow_faults)

    async def discard(self) -> None:
        """End a prepared host that nobody took. Idempotent."""
        if self._prepared is not None:
            (_, starting), self._prepared = self._prepared, None
            await _end(starting)


async def _start(source: HostSource, env: Mapping[str, str], allow_faults: bool) -> NewHost:
    return await source.start(env=env, allow_faults=allow_faults)


async def _end(starting: asyncio.Task[NewHost]) -> None:
    """Cancelled or complete, no process is left."""
    starting.cancel()
    await asyncio.wait([starting])
    if not starting.cancelled() and starting.exception() is None:
        starting.result().discard(_REAP_S)  # a millisecond: it has no model
