"""The engine host: a child process with one model, so that a crash, a hang or a wrong device costs one request.

    python -m kensho.runtime.hosts.host_main PARENT_PID SOCKET_FD SEGMENT_FD LIFE_FD LIFE_FD [allow-faults]

One thread: messages of `frames` come in order, one request is worked on at a time, and the socket is looked at before
every step, so that Cancel is obeyed within one. It ends when the socket closes, or with its parent (`parent_death`).
Errors of ours go to the parent as Failed and the host lives on; anything else ends the process, and its last lines on
stderr are what the parent reports.
"""

import contextlib
import select
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kensho.base.clock import Clock, SystemClock
from kensho.base.errors import EngineError, KenshoError
from kensho.base.network_guard import forbid_network
from kensho.runtime.cache.pins import Pin, pin_graph
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator
from kensho.runtime.engine.session import Session
from kensho.runtime.hosts import frames
from kensho.runtime.hosts.early_death import stand_watch
from kensho.runtime.hosts.error_wire import describe_error
from kensho.runtime.hosts.frames import Message
from kensho.runtime.hosts.tensor_segment import TensorSegment
from kensho.runtime.system.parent_death import die_with_parent

_READ_BYTES = 65536


class ParentGoneError(Exception):
    """The socket was closed: nobody wants anything from this process any more."""


class Channel:
    """Messages over the inherited socket, in order. Blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = frames.Decoder()
        self._inbox: list[Message] = []

    def send(self, message: Message) -> None:
        try:
            self._sock.sendall(frames.encode(message))
        except OSError as error:
            raise ParentGoneError from error

    def send_half(self, message: Message) -> None:
        """The first half of its bytes: what a process sends that ends at the wrong moment (row S6)."""
        frame = frames.encode(message)
        self._sock.sendall(frame[: len(frame) // 2])

    def receive(self) -> Message:
        """The next message; waits for it."""
        while not self._inbox:
            self._read()
        return self._inbox.pop(0)

    def is_cancelled(self, request: int) -> bool:
        """Whether Cancel for the request has come by now. Takes it; leaves other messages in order. Does not wait."""
        while select.select([self._sock], [], [], 0)[0]:
            self._read()
        if frames.Cancel(request) not in self._inbox:
            return False
        self._inbox.remove(frames.Cancel(request))
        return True

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except OSError as error:
            raise ParentGoneError from error
        if not data:
            raise ParentGoneError
        self._inbox += self._decoder.feed(data)


class Host:
    """What the process does with each message."""

    def __init__(self, channel: Channel, segment: TensorSegment, *, allow_faults: bool, clock: Clock) -> None:
        self._channel = channel
        self._segment = segment
        self._allow_faults = allow_faults
        self._faults = Faults()
        self._clock = clock
        self._generator: Generator | None = None
        self._pin: Pin | None = None

    def serve(self) -> None:
        """Answer until the socket closes."""
        try:
            self._serve()
        except ParentGoneError:
            self._faults.before_end()

    def _serve(self) -> None:
        while True:
            match self._channel.receive():
                case frames.Ping():
                    self._channel.send(frames.Pong())
                case frames.Load() as load:
                    self._answer(0, partial(self._load, load))
                case frames.Generate() as request:
                    self._answer(request.request, partial(self._generate, request))
                case frames.Exchange() as exchange:
                    self._answer(exchange.request, partial(self._exchange, exchange))
                case frames.Fault(kind) if self._allow_faults:
                    self._faults.arm(kind)
                case _:
                    # Such as a Cancel that came after the end of its request.
                    continue

    def _answer(self, request: int, work: Callable[[], Message]) -> None:
        try:
            answer = work()
        except KenshoError as error:
            answer = frames.Failed(request, describe_error(error))
        except MemoryError:
            refusal = EngineError("the engine host is out of memory", advice="use a smaller model or context")
            answer = frames.Failed(request, describe_error(refusal))
        self._send(answer)

    def _send(self, answer: Message) -> None:
        if self._faults.cuts_answers:
            self._channel.send_half(answer)
            raise ParentGoneError
        self._channel.send(answer)

    def _load(self, load: frames.Load) -> Message:
        began_s = self._clock.monotonic_s()
        self._faults.before_load()
        graph_folder = Path(load.graph_folder)
        # Held until this process ends. A raw graph has nothing to pin, and the parent's own pin protects meanwhile.
        with contextlib.suppress(OSError):
            self._pin = pin_graph(graph_folder)
        session = Session.load(
            graph_folder,
            Path(load.model_folder),
            tier=load.tier,
            max_context=load.max_context,
            threads=load.threads,
        )
        self._generator = Generator(session, self._faults)
        return frames.Loaded(session.max_context, self._clock.monotonic_s() - began_s)

    def _generate(self, request: frames.Generate) -> Message:
        reason = self._loaded().run(
            request,
            is_cancelled=lambda: self._channel.is_cancelled(request.request),
            on_token=lambda token: self._send(frames.Token(request.request, token)),
        )
        return frames.Done(request.request, reason)

    def _exchange(self, exchange: frames.Exchange) -> Message:
        arrays = self._segment.view(exchange.tensors)
        match exchange.operation:
            case "echo":
                headers = self._segment.put(arrays, after=exchange.tensors)
            case "logits":
                logits = self._loaded().logits(_ids(arrays))
                headers = self._segment.put({"logits": logits})
        return frames.Exchanged(exchange.request, headers)

    def _loaded(self) -> Generator:
        if self._generator is None:
            raise EngineError("the engine host was asked before a model was loaded", advice="load a model first")
        return self._generator


def _ids(arrays: Mapping[str, NDArray[np.generic]]) -> list[int]:
    ids = arrays.get("ids")
    if ids is None or ids.ndim != 1 or ids.dtype != np.int64:
        raise EngineError("logits need one row of ids as int64", advice="ask for logits with token ids")
    numbers: list[int] = ids.tolist()
    return numbers


def serve(given: Sequence[int], *, allow_faults: bool) -> None:
    """Be the host behind this socket until it closes. `given`: descriptors of the socket, the tensor segment, and the
    pipes that tell of its death (`early_death`)."""
    socket_fd, segment_fd, *life = given
    forbid_network()
    stand_watch(life)
    with socket.socket(fileno=socket_fd) as sock:
        host = Host(Channel(sock), TensorSegment(segment_fd), allow_faults=allow_faults, clock=SystemClock())
        host.serve()


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    allow_faults = sys.argv[-1] == "allow-faults"
    serve([int(word) for word in (sys.argv[2:-1] if allow_faults else sys.argv[2:])], allow_faults=allow_faults)


if __name__ == "__main__":
    main()
