"""Listens for HTTP and serves an ASGI application with uvicorn, on the caller's event loop and with its signals.

server = HttpServer(host="127.0.0.1", port=0, is_remote_allowed=False, places=1000, emit=emit)   # may raise PortInUse
await server.start(app)
await server.close(grace_s=5.0)

Connections are bounded by `places`: a newcomer takes the place of the one that has waited longest for its client to ask
for something. While every one of them is busy it is told so (503), and beyond TOLD of those it is cut.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import socket
from collections.abc import Iterator

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from kensho.base.clock import Seconds
from kensho.base.errors import ConfigError, PortInUse, UsageError
from kensho.base.events import Emit
from kensho.server.descriptors import ACCEPTED_AT_ONCE, TOLD, has_unread
from kensho.server.gathering import Crowding, Gathering, gather_crowd
from kensho.server.openai_errors import Problem
from kensho.server.places import Places
from kensho.server.responses import send_problem

LISTEN_BACKLOG = 1024
"""Connections that the kernel keeps until they are accepted."""
KEEP_ALIVE_S = 60
"""For how long a connection may wait for its next request."""
HEAD_S: Seconds = 10.0
"""For how long a request's head may take, and a new connection for its first (guess)."""
TOLD_S: Seconds = 1.0
"""The same for a connection without a place."""
LAST_WORDS_S: Seconds = 1.0
"""For telling clients that the server stops; who takes nothing in is cut off."""
_FULL = Problem(
    503, "all connections are in use; come back", "overloaded_error", "overloaded", headers={"retry-after": "1"}
)


class HttpServer:
    """Bound at once, so that a port in use is told before anything else is done; serves after `start`."""

    def __init__(self, host: str, port: int, *, is_remote_allowed: bool, places: int, emit: Emit) -> None:
        """Raises PortInUse, ConfigError for an address that is not of this machine, and UsageError for one that other
        machines reach unless `is_remote_allowed`."""
        self._socket = _bind(host, port)
        self.address: str = self._socket.getsockname()[0]
        self.port: int = self._socket.getsockname()[1]
        self.is_remote = not ipaddress.ip_address(self.address.partition("%")[0]).is_loopback
        if self.is_remote and not is_remote_allowed:
            self._socket.close()
            raise UsageError(
                f"other machines could reach {host}, and whoever reaches it may use every model",
                advice="add --allow-remote if that is wanted, or leave --host out",
            )
        self._places: Places[_Connection] = Places(places, told=TOLD, has_said=lambda one: has_unread(one.transport))
        self._crowd = gather_crowd("HTTP", places, emit)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://[{self.address}]:{self.port}" if ":" in self.address else f"http://{self.address}:{self.port}"

    async def start(self, app: ASGIApp) -> None:
        """Returns once requests are taken."""
        config = _Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.places, config.crowd = self._places, self._crowd
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110  # it has no event to wait for
            await asyncio.sleep(0.001)
        # asyncio has one number for what it accepts in one turn of the loop and for what the kernel keeps meanwhile.
        self._socket.listen(LISTEN_BACKLOG)

    def abort(self, scope: Scope) -> None:
        """Cut the connection of a request, without waiting for its client to read anything."""
        if self._server:
            for connection in list(self._server.server_state.connections):
                if isinstance(connection, H11Protocol) and connection.client == scope["client"]:
                    connection.transport.abort()

    async def close(self, *, grace_s: Seconds) -> None:
        """Take no more; let running answers finish within `grace_s`, then cancel them: the application tells its
        clients why, within LAST_WORDS_S. Idempotent."""
        server, self._server = self._server, None
        if server is None or self._serving is None:
            self._socket.close()
            return
        server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]  # asyncio takes fractions
        server.should_exit = True
        await self._serving
        if server.server_state.tasks:
            await asyncio.wait(server.server_state.tasks, timeout=LAST_WORDS_S)
        for connection in list(server.server_state.connections):
            if isinstance(connection, H11Protocol):
                connection.transport.abort()
        self._crowd.flush()


class _Config(uvicorn.Config):
    """What all connections share, in the one thing that uvicorn gives them."""

    places: "Places[_Connection]"
    crowd: Gathering[Crowding]


class _Connection(H11Protocol):
    """Has a place or is told that there is none; is cut off when the head of a request does not come: uvicorn itself
    would take any number, and wait for ever."""

    config: _Config
    _head_s: Seconds
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._head_s = HEAD_S
        entry = self.config.places.enter(self)
        if entry.instead_of is not None:
            self.config.crowd.add("closed")
            entry.instead_of.transport.abort()
        if entry.verdict != "stays":
            self.config.crowd.add("refused")
            self.app, self._head_s = _tell_full, TOLD_S
        if entry.verdict == "is_cut":
            transport.abort()
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note_work()
        self._watch_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_work()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.config.places.leave(self)
        self._forget()

    def _note_work(self) -> None:
        """Who has its answer and still sends is not busy."""
        is_busy = self.cycle is not None and not self.cycle.response_complete
        (self.config.places.asked if is_busy else self.config.places.waits)(self)

    def _watch_head(self) -> None:
        """From the first byte that is missing; that more bytes come gives no more time."""
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._late is None:
            self._late = self.loop.call_later(self._head_s, self.transport.abort)

    def _forget(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None


async def _tell_full(scope: Scope, receive: Receive, send: Send) -> None:
    await send_problem(send, _FULL, {"connection": "close"})


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the daemon's."""
        yield


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=LISTEN_BACKLOG)
    except (OSError, ValueError) as error:
        # What a name server says is numbered otherwise (gaierror).
        code = error.errno if isinstance(error, OSError) and not isinstance(error, socket.gaierror) else None
        taken = code == errno.EADDRINUSE
        reason = os.strerror(code).lower() if code else "there is no such address"
        raise (PortInUse if taken else ConfigError)(
            f"cannot listen on {host} port {port}: {reason}", advice="choose another --port; 0 takes any free one"
        ) from error
