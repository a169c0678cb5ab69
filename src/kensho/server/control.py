"""The daemon's end of the store's socket: runs commands for thin clients. What goes over it: `control_frames`.

    control = ControlServer(store, choose, emit=emit)
    await control.start()
    ...
    await control.close(grace_s=5.0)

`choose(request, streams)` returns the command as a coroutine, whose result is the exit code, or raises `NotMine` when
the client shall run it itself. The coroutine is cancelled when the client asks for that or goes away.

Rules: (1) only the same user and root are served (SO_PEERCRED); (2) one command a connection, asked for within
REQUEST_S; (3) what a client does not read is kept up to MAX_UNREAD_BYTES, then its command is cancelled; (4) no client
can hurt another, whatever it sends: who says nothing loses its place to the next one, and while MAX_COMMANDS run,
`choose` is told that one more is too many; (5) the socket file appears with mode 0600, in one rename, and goes at the
end.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.errors import StorageError
from kensho.base.events import Emit
from kensho.server.control_frames import (
    ACCEPTED,
    CANCEL,
    ERR,
    EXIT,
    HEADER_BYTES,
    MAX_ADDRESS_BYTES,
    MAX_REQUEST_BYTES,
    NOT_MINE,
    OUT,
    REQUEST,
    SOCKET_NAME,
    decode_request,
    frame,
    header,
)
from kensho.server.control_streams import NotMine, Request, Stream, Streams
from kensho.server.descriptors import ACCEPTED_AT_ONCE, CONTROL_PLACES, has_unread
from kensho.server.gathering import gather_crowd
from kensho.server.places import Places

REQUEST_S: Seconds = 5.0
"""A client that has not said what it wants by then is cut off (guess; a real one needs a millisecond)."""
LINGER_S: Seconds = 5.0
"""How long the last frames wait for a client to read them (guess)."""
MAX_UNREAD_BYTES = 1 << 20
"""Five times the longest answer there can be; what is written meanwhile is held in memory."""
MAX_COMMANDS = 128
LISTEN_BACKLOG = 512
"""Connections that the kernel keeps until they are accepted; further clients wait for that."""

Choose = Callable[[Request, Streams], Coroutine[None, None, int]]


class ControlServer:
    """Listens on STORE/daemon.sock. The caller holds the store's `DaemonLock`: any socket file there is stale."""

    def __init__(self, store: Path, choose: Choose, *, emit: Emit) -> None:
        self._store = store
        self._choose = choose
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._places: Places[_Connection] = Places(
            CONTROL_PLACES, told=0, has_said=lambda one: has_unread(one.transport)
        )
        self._crowd = gather_crowd("the store's socket", MAX_COMMANDS, emit)

    async def start(self) -> None:
        """Raises StorageError where the socket cannot be made."""
        try:
            listener = _listen(self._store)
        except OSError as error:
            raise StorageError(
                f"cannot make {self._store / SOCKET_NAME}: {error.strerror}", advice="check the store's folder"
            ) from error
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._connect, sock=listener, backlog=ACCEPTED_AT_ONCE)
        # asyncio has one number for what it accepts in one turn of the loop and for what the kernel keeps meanwhile.
        listener.listen(LISTEN_BACKLOG)

    @property
    def commands(self) -> int:
        """How many run now."""
        return sum(connection.task is not None for connection in self._connections)

    async def close(self, *, grace_s: Seconds) -> None:
        """Take no more; let what runs finish within `grace_s`, then cancel it. Idempotent."""
        if self._server is None:
            return
        server, self._server = self._server, None
        with contextlib.suppress(FileNotFoundError):
            (self._store / SOCKET_NAME).unlink()
        server.close()
        tasks = [connection.task for connection in self._connections if connection.task]
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s)
            for connection in self._connections:
                connection.cancel("daemon")
            await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._connections):
            connection.end()
        self._crowd.flush()

    def _connect(self) -> "_Connection":
        return _Connection(self)

    def enter(self, connection: "_Connection") -> bool:
        """Whether a new one may stay."""
        if not _is_allowed(connection.transport.get_extra_info("socket")):
            return False
        entry = self._places.enter(connection)
        if entry.instead_of:
            self._crowd.add("closed")
            entry.instead_of.transport.abort()
        if entry.verdict != "stays":
            self._crowd.add("refused")
            return False
        self._connections.add(connection)
        return True

    def choose(
        self, connection: "_Connection", argv: list[str], about: Mapping[str, str], streams: Streams
    ) -> Coroutine[None, None, int]:
        """The command that a client asks for. Raises NotMine."""
        self._places.asked(connection)
        is_too_many = self.commands >= MAX_COMMANDS
        command = self._choose(Request(argv, about, is_too_many), streams)
        if is_too_many:
            self._crowd.add("refused")
        return command

    def waits(self, connection: "_Connection") -> None:
        """What came from it was no whole request."""
        self._places.waits(connection)

    def leave(self, connection: "_Connection") -> None:
        self._places.leave(connection)
        self._connections.discard(connection)


class _Connection(asyncio.Protocol):
    """One client. States: waiting for its request, running its command (`task`), over."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._received = bytearray()
        self._was_asked = False
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # create_unix_server makes no other
        self.transport = transport
        self._timer = asyncio.get_running_loop().call_later(REQUEST_S, transport.abort)
        self._streams = self._make_streams({})
        if not self._server.enter(self):
            transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= HEADER_BYTES:
            kind, length = header(self._received)
            is_expected = kind == CANCEL if self._was_asked else kind == REQUEST
            if not is_expected or length > (0 if kind == CANCEL else MAX_REQUEST_BYTES):
                self.transport.abort()  # no client of ours
                return
            end = HEADER_BYTES + length
            if len(self._received) < end:
                return
            payload = bytes(self._received[HEADER_BYTES:end])
            del self._received[:end]
            if self._was_asked:
                self.cancel("client")
            else:
                self._was_asked = True
                self._timer.cancel()
                self._begin(payload)
        if not self._was_asked:
            self._server.waits(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        if self.task is None:
            self._server.leave(self)
        self.cancel("client")

    def cancel(self, by: Literal["client", "daemon"]) -> None:
        """End the command; once, so that its cleaning up is not disturbed."""
        if self.task and not self._streams.ended_by:
            self._streams.ended_by = by
            # Not at once: a task that has not begun would never get to its own end.
            asyncio.get_running_loop().call_soon(self.task.cancel)

    def end(self) -> None:
        """Close when the client has read what is left; it is not waited for without end."""
        self.transport.close()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self.transport.abort)

    def _begin(self, payload: bytes) -> None:
        try:
            about, argv = decode_request(payload)
        except ValueError:
            self.transport.abort()
            return
        self._streams = self._make_streams(about)
        try:
            command = self._server.choose(self, argv, about, self._streams)
        except NotMine as reason:
            self.transport.write(frame(NOT_MINE, str(reason).encode("utf-8", "backslashreplace")))
            self.end()
            return
        self.transport.write(frame(ACCEPTED))
        self.task = asyncio.create_task(self._run(command))

    async def _run(self, command: Coroutine[None, None, int]) -> None:
        try:
            code = await command
            self._send(EXIT, bytes([code]))
        finally:
            self.task = None
            if self.transport.is_closing():
                self._server.leave(self)
            else:
                self.end()

    def _make_streams(self, about: Mapping[str, str]) -> Streams:
        is_terminal = about.get("terminal") == "1"
        return Streams(
            Stream(self._send, OUT, about.get("stdout", ""), is_terminal=False),
            Stream(self._send, ERR, about.get("stderr", ""), is_terminal=is_terminal),
        )

    def _send(self, kind: bytes, payload: bytes) -> None:
        if self.transport.is_closing():
            return
        self.transport.write(frame(kind, payload))
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.cancel("client")


def _is_allowed(connection: socket.socket) -> bool:
    """The other end is a process of this user or of root's, says the kernel."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    return int.from_bytes(credentials[4:8], sys.byteorder) in (0, os.geteuid())


def _listen(store: Path) -> socket.socket:
    """A socket that nobody else can connect to, in place of whatever had its name."""
    name = f"{SOCKET_NAME}.new"  # always the same: one that was killed in here leaves nothing for ever
    folder = os.open(store, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # An address has room for 107 bytes; by its descriptor any folder can be named.
        is_long = len(os.fsencode(store / name)) > MAX_ADDRESS_BYTES
        address = f"/proc/self/fd/{folder}/{name}" if is_long else str(store / name)
        (store / name).unlink(missing_ok=True)
        listener.bind(address)
        (store / name).chmod(0o600)
        listener.listen(LISTEN_BACKLOG)
        (store / name).replace(store / SOCKET_NAME)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(folder)
    return listener
