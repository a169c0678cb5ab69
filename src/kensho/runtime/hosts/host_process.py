"""One engine host process, from its start until it is reaped, seen from an event loop.

`receive` hands out the messages of the host in order; `kill` ends it; `ended` says how it ended. One task watches
socket and process: whatever ends the host (a signal, a closed socket, `kill`, `close`), that task kills what is left
and reaps it, once, and calls `on_lost` unless `close` asked for the end. The socket has one owner, the transport.

What comes when a host dies: a pipe of `early_death` closes at once; the kernel frees the memory, 0.1 ms per MB; the
socket closes; the pidfd becomes readable, and how it ended is known. The first two that come are enough to know.
"""

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from kensho.base.clock import Seconds
from kensho.base.errors import EngineError
from kensho.runtime.hosts.frames import Decoder, Message, encode
from kensho.runtime.hosts.host_source import HostSource, NewHost
from kensho.runtime.system.process import Ended
from kensho.runtime.system.to_the_end import to_the_end

if TYPE_CHECKING:
    from kensho.runtime.hosts.tensor_segment import TensorSegment

GRACE_S: Seconds = 0.5
"""How long a host that closed its socket may take to end by itself: it then reports its own exit code."""
REAP_S: Seconds = 2.0
"""How long to wait after SIGKILL. Measured 0.4 ms; a process stuck in a driver is left to the kernel."""

_READ_BYTES = 16384
"""Of a socket at once, into one buffer: `asyncio.Protocol` allocates 256 KiB for each token of 13 bytes, 20 us."""
_LAST_WORDS_S: Seconds = 0.02
"""For what an ended host sent before its end and we have not read yet."""


class HostGoneError(Exception):
    """There is no more to receive: the host has closed its socket."""


class HostProcess:
    """A running host. Made by `start`; used from the loop that made it."""

    def __init__(self, made: NewHost, link: "_Link", transport: asyncio.Transport) -> None:
        self._child = made.child
        self._segment = made.segment
        self._life = set(made.life)
        self._tensors: TensorSegment | None = None
        self._link = link
        self._transport = transport
        self._is_killed = False
        self._is_dying = False
        self._is_closed = False
        self._why = ""
        self._watcher: asyncio.Task[Ended] | None = None

    @classmethod
    async def start(
        cls,
        source: HostSource,
        *,
        env: Mapping[str, str],
        allow_faults: bool,
        on_lost: Callable[[Ended, str], None],
    ) -> "HostProcess":
        """Start a host; it answers Ping once its imports are done. Raises EngineError.

        `on_lost` gets how it ended and what was given to `kill` (empty: it ended by itself).
        """
        made = await source.start(env=env, allow_faults=allow_faults)
        link = _Link()
        try:
            transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=made.sock)
        except BaseException:
            made.discard(REAP_S)  # cancelled just now
            raise
        host = cls(made, link, transport)
        host._watcher = asyncio.create_task(host._watch(on_lost), name=f"watch-{host.pid}")
        return host

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """False as soon as the socket is closed or it was killed; the process may still be ending."""
        return not self._is_killed and not self._link.is_lost.is_set()

    @property
    def is_killed(self) -> bool:
        """Whether `kill` was called: then why it ended is known, and when is only a matter of milliseconds."""
        return self._is_killed

    @property
    def is_cut(self) -> bool:
        """Whether its last message did not come whole."""
        return self._link.is_within

    @property
    def has_ended(self) -> bool:
        """Whether it has been reaped."""
        return self._watcher is not None and self._watcher.done()

    @property
    def tensors(self) -> "TensorSegment":
        """The memory shared with the host. Raises EngineError when it has ended or no descriptor is left."""
        if self._tensors is None:
            from kensho.runtime.hosts.tensor_segment import TensorSegment  # numpy: not needed for tokens

            if self.has_ended:
                raise EngineError("the engine host has ended", advice="start the engine")
            try:
                self._tensors = TensorSegment(os.dup(self._segment))
            except OSError as error:
                raise EngineError(
                    f"cannot open the memory for tensors: {error.strerror}", advice="raise the limit on open files"
                ) from error
        return self._tensors

    def send(self, message: Message) -> None:
        """Queue a message. To a host that is gone: nothing happens, `receive` will say so."""
        data = encode(message)
        if not self._transport.is_closing():
            self._transport.write(data)

    async def receive(self, timeout_s: Seconds) -> Message:
        """The next message. Raises TimeoutError, HostGoneError, or EngineError for bytes that are no message."""
        link = self._link
        if not link.inbox and not link.is_lost.is_set():
            await link.more(timeout_s)
        if link.inbox:
            return link.inbox.popleft()
        if link.error:
            raise link.error
        raise HostGoneError

    def kill(self, why: str) -> None:
        """SIGKILL now; `ended` waits until it is reaped. `why` is for `on_lost`."""
        if self.is_alive:
            self._why = why
        self._is_killed = True
        self._child.kill()
        self._transport.abort()

    def close(self) -> None:
        """Close the socket: the host ends by itself before its next step, or is killed after GRACE_S."""
        self._is_closed = self._is_closed or self.is_alive
        self._transport.close()

    async def ended(self) -> Ended:
        """How it ended; waits for that, at most GRACE_S + REAP_S after the socket is closed."""
        assert self._watcher is not None  # noqa: S101  # set by `start`
        return await to_the_end(_result_of(self._watcher))

    async def fate(self) -> Ended:
        """How it ends, before its memory is freed where that is known so early; else as `ended`."""
        if self._is_dying and (ended := self._child.dying()) is not None:
            return ended
        return await self.ended()

    async def _watch(self, on_lost: Callable[[Ended, str], None]) -> Ended:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._child.descriptor, self._note_end)
        for pipe in self._life:
            loop.add_reader(pipe, self._note_death)
        try:
            await self._link.is_lost.wait()
        finally:
            loop.remove_reader(self._child.descriptor)
            self._end_watch()
        ended = None if self._is_killed else await self._child.ended_within(GRACE_S)
        if ended is None:
            self._child.kill()
            ended = await self._child.ended_within(REAP_S) or self._child.reap(0)
        os.close(self._segment)
        if self._tensors:
            self._tensors.close()
        if not self._is_closed:
            on_lost(ended, self._why)
        return ended

    def _note_death(self) -> None:
        """It is dying, and its memory is being freed. The socket will not end before that, but nothing more comes
        through it: what is there already is read in this turn of the loop."""
        self._is_dying = True
        self._end_watch()
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._transport.abort)

    def _end_watch(self) -> None:
        while self._life:
            pipe = self._life.pop()
            asyncio.get_running_loop().remove_reader(pipe)
            os.close(pipe)

    def _note_end(self) -> None:
        """The process has ended. Its socket says so a little earlier, unless another process has a copy of its end."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._child.descriptor)
        loop.call_later(_LAST_WORDS_S, self._transport.abort)


async def _result_of(watcher: asyncio.Task[Ended]) -> Ended:
    """Several may wait for the one watcher; none of them may end it."""
    return await asyncio.shield(watcher)


class _Link(asyncio.BufferedProtocol):
    """Bytes of the host -> messages. One task waits for them at a time."""

    def __init__(self) -> None:
        self.inbox: deque[Message] = deque()
        self.is_lost = asyncio.Event()
        self.error: EngineError | None = None
        self._decoder = Decoder()
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def more(self, timeout_s: Seconds) -> None:
        """Until something has come, or the end. Raises TimeoutError. A bare future and timer: half of the time that a
        token takes from the socket to its reader would else be spent in `Queue` and `timeout`."""
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(timeout_s, _expire, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    @property
    def is_within(self) -> bool:
        return self._decoder.is_within

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.error:
            return
        try:
            self.inbox.extend(self._decoder.feed(bytes(self._buffer[:nbytes])))
        except EngineError as error:
            self.error = error
            if self._transport:
                self._transport.abort()
        if self.inbox or self.error:  # not for half a message: that is no progress
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost.set()
        self._wake()

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
