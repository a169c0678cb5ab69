"""The engine hosts of one application: the first one soonest, all later ones from a fork-server.

    supply = HostSupply(env=settings.child_env, emit=emit, first=None)
    EngineHost(..., hosts=supply)
    supply.close()                       # after the last engine has been closed

The first host is the prefork if there is one, else a new interpreter: nobody waits for a fork-server that has not
imported anything yet. The second start launches it and is served by it, which takes as long as a new interpreter would
and makes every later start, each restart after a failure among them, one of 10 ms (docs/adr/0052). A fork-server that
is killed, hangs or fails costs one spawn; the next start launches another. One that hangs stays as long as hosts of it
run.
"""

import asyncio
from collections.abc import Mapping

from kensho.base.clock import Seconds
from kensho.base.errors import EngineError
from kensho.base.events import Emit, ForkServerLost
from kensho.runtime.hosts.fork_server import ForkServer
from kensho.runtime.hosts.host_source import NewHost, SpawnedHosts, adopt
from kensho.runtime.hosts.prefork import Prefork

FORK_S: Seconds = 5.0
"""For a fork, the imports of a new fork-server included (0.1 to 0.3 s measured); then it is taken for hung."""
FORK_AGAIN_S: Seconds = 1.0
"""For a fork of one that has made a host before (5 to 22 ms measured, the latter at a load of 14)."""
_SAYS_WHY_S: Seconds = 0.2
"""Between a fork-server's last socket and its exit code."""
MAX_FAILURES = 3
"""Fork-servers in a row that made no host; from then on hosts are spawned."""


class HostSupply:
    """A `HostSource` that chooses. Used from one event loop."""

    def __init__(self, *, env: Mapping[str, str], emit: Emit, first: Prefork | None = None) -> None:
        """`env` is the fork-server's. `first` is used where faults are not allowed, and closed by `close`."""
        self._env = env
        self._emit = emit
        self._first = first
        self._spawned = SpawnedHosts()
        self._has_started = False
        self._server: ForkServer | None = None
        self._is_proven = False
        """The fork-server has made a host."""
        self._running: dict[ForkServer, asyncio.AbstractEventLoop] = {}  # all that are not reaped, the asked one too
        self._failures = 0
        self._forking = asyncio.Lock()  # one waits for a fork-server's words at a time

    @property
    def fork_server_pid(self) -> int | None:
        """Its process id while it is of use."""
        return self._server.pid if self._server else None

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        """See `HostSource.start`."""
        is_first, self._has_started = not self._has_started, True
        if self._first and not self._first.is_taken and not allow_faults:
            return adopt(self._first)
        if not is_first:
            async with self._forking:
                if self._failures < MAX_FAILURES and (made := await self._fork(env, allow_faults)):
                    return made
        return await self._spawned.start(env=env, allow_faults=allow_faults)

    def close(self) -> None:
        """End the fork-server, with every host it still has, and a first host that nobody took. Idempotent."""
        if self._first:
            self._first.close()
        self._server = None
        for server in tuple(self._running):
            self._unwatch(server)
            server.close()

    async def _fork(self, env: Mapping[str, str], allow_faults: bool) -> NewHost | None:
        """A host from the fork-server, which is launched if need be; None: it failed, and is not asked again."""
        try:
            server = self._server or self._launch()
        except EngineError as error:
            self._failures += 1
            self._emit(ForkServerLost(pid=None, reason=error.message))
            return None
        limit_s = FORK_AGAIN_S if self._is_proven else FORK_S
        try:
            async with asyncio.timeout(limit_s):
                made = await server.start_host(env=env, allow_faults=allow_faults)
        except TimeoutError:
            self._failures += 1
            self._lose(server, f"it made no host within {limit_s:g} s")
        except EngineError as error:
            self._failures += 1
            await self._ask_why(server, error.message)
        else:
            self._failures, self._is_proven = 0, True
            return made
        return None

    def _launch(self) -> ForkServer:
        for lost in tuple(self._running):
            if not lost.has_hosts:
                self._unwatch(lost)
                lost.close()
        self._server = server = ForkServer.launch(self._env)
        self._is_proven = False
        self._watch(server)
        return server

    async def _ask_why(self, server: ForkServer, message: str) -> None:
        """It refused, most probably because it is ending: then how it ended says more than `message`."""
        if not self._unwatch(server):
            return  # its end was noticed and told
        ended = await server.ended_within(_SAYS_WHY_S)
        if ended:
            server.close()
        else:
            self._watch(server)
        self._lose(server, ended.explained if ended else message)

    def _watch(self, server: ForkServer) -> None:
        self._running[server] = loop = asyncio.get_running_loop()
        loop.add_reader(server.descriptor, self._note_end, server)

    def _unwatch(self, server: ForkServer) -> bool:
        """Before anything may reap it, which closes the descriptor. False: somebody has."""
        loop = self._running.pop(server, None)
        if loop and not loop.is_closed():
            loop.remove_reader(server.descriptor)
        return loop is not None

    def _note_end(self, server: ForkServer) -> None:
        self._unwatch(server)
        self._lose(server, server.close().explained)

    def _lose(self, server: ForkServer, reason: str) -> None:
        """Do not ask it again. One that lives is not killed: hosts of it may be answering now."""
        if server is self._server:
            self._server = None
            self._emit(ForkServerLost(pid=server.pid, reason=reason))
