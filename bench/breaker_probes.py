"""Eleven questions to a breaker. Each is (question, how to ask, Kensho's right answer); answers are short words.

A half-open breaker should send one probe, not everyone; cancelling is nobody's failure and nobody's success; what was
asked before a trip says nothing about the time after it; and no clock on the wall should matter.
"""

import asyncio
import contextlib
import datetime
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from breaker_peers import Kensho, Peer
from kensho.resilience.circuit import CanaryPassed

RESET_S = 0.2
NOT_ASKED = "-"
Ask = Callable[[type[Peer]], str]


class Backend:
    """Counts who reaches it, and fails as long as `is_dead`."""

    def __init__(self, *, takes_s: float = 0.0) -> None:
        self.hits = 0
        self.is_dead = True
        self.takes_s = takes_s
        self.lock = threading.Lock()

    def call(self) -> str:
        with self.lock:
            self.hits += 1
        time.sleep(self.takes_s)
        if self.is_dead:
            raise OSError("dead")
        return "ok"

    async def acall(self) -> str:
        self.hits += 1
        await asyncio.sleep(self.takes_s)
        if self.is_dead:
            raise OSError("dead")
        return "ok"


async def swallow(awaitable: Any) -> None:
    with contextlib.suppress(Exception):
        await awaitable


def swallow_call(call: Callable[[], Any]) -> None:
    with contextlib.suppress(Exception):
        call()


def half_open_async(kind: type[Peer]) -> str:
    if not kind.has_async:
        return NOT_ASKED

    async def ask() -> int:
        backend, peer = Backend(takes_s=0.02), kind(RESET_S)
        if isinstance(peer, Kensho):
            peer.is_canary_slow = True
        call = peer.guard_async(backend.acall)
        for _ in range(3):
            await swallow(call())
        await asyncio.sleep(RESET_S * 1.3)
        backend.hits = 0
        await asyncio.gather(*(swallow(call()) for _ in range(50)))
        return backend.hits

    return str(asyncio.run(ask()))


def half_open_threads(kind: type[Peer]) -> str:
    if not kind.has_sync:
        return NOT_ASKED
    backend, peer = Backend(takes_s=0.02), kind(RESET_S)
    if isinstance(peer, Kensho):
        peer.is_canary_slow = True
    call = peer.guard(backend.call)
    for _ in range(3):
        swallow_call(call)
    time.sleep(RESET_S * 1.3)
    backend.hits = 0
    in_threads(20, lambda: swallow_call(call))
    return str(backend.hits)


def side_by_side(kind: type[Peer]) -> str:
    if not kind.has_sync:
        return NOT_ASKED
    backend = Backend(takes_s=0.1)
    backend.is_dead = False
    call = kind(RESET_S).guard(backend.call)
    began_s = time.monotonic()
    in_threads(8, call)
    return "yes" if time.monotonic() - began_s < 0.4 else "one by one"


def cancel_between(kind: type[Peer]) -> str:
    if not kind.has_async:
        return NOT_ASKED
    peer, outcomes = kind(60.0), ["fail", "fail", "cancel", "fail"]
    asyncio.run(_calls(peer, outcomes))
    return "open" if peer.is_open() else "closed"


def cancels_alone(kind: type[Peer]) -> str:
    if not kind.has_async:
        return NOT_ASKED
    peer = kind(60.0)
    asyncio.run(_calls(peer, ["cancel"] * 5))
    return "open" if peer.is_open() else "closed"


async def _calls(peer: Peer, outcomes: list[str]) -> None:
    waiting = iter(outcomes)

    async def backend() -> None:
        if next(waiting) == "cancel":
            await asyncio.sleep(10.0)
        raise OSError("dead")

    call = peer.guard_async(backend)
    for outcome in outcomes:
        task = asyncio.ensure_future(call())
        await asyncio.sleep(0.002)
        if outcome == "cancel":
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


def cancelled_probe(kind: type[Peer]) -> str:
    """Is the circuit closed by a probe that was cancelled?"""
    if not kind.has_async:
        return NOT_ASKED

    async def ask() -> bool:
        backend, peer = Backend(), kind(RESET_S)
        if isinstance(peer, Kensho):
            peer.is_canary_slow = True
        call = peer.guard_async(backend.acall)
        for _ in range(3):
            await swallow(call())
        await asyncio.sleep(RESET_S * 1.3)
        backend.takes_s = 10.0
        task = asyncio.ensure_future(call())
        await asyncio.sleep(0.01)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
        backend.takes_s, backend.hits = 0.0, 0
        for _ in range(2):  # a closed one lets both through before it could open again
            await swallow(call())
        return backend.hits == 2

    return "closed" if asyncio.run(ask()) else "not closed"


def stale_success(kind: type[Peer]) -> str:
    """A call from before the trip succeeds after it: does it close the circuit?"""
    if not kind.has_async:
        return NOT_ASKED

    async def ask() -> bool:
        slow, dead, peer = Backend(takes_s=0.05), Backend(), kind(60.0)
        slow.is_dead = False
        backends = {"slow": slow, "dead": dead}
        which = ["slow"]

        async def backend() -> str:
            return await backends[which[0]].acall()

        call = peer.guard_async(backend)
        early = asyncio.ensure_future(call())
        await asyncio.sleep(0.01)
        which[0] = "dead"
        for _ in range(3):
            await swallow(call())
        await early
        dead.hits = 0
        await swallow(call())
        return dead.hits == 1

    return "closes it" if asyncio.run(ask()) else "ignored"


def hung_probe(kind: type[Peer]) -> str:
    """While a probe hangs for a second: who else reaches the backend?"""
    if not kind.has_async:
        return NOT_ASKED

    async def ask() -> int:
        backend = Backend()
        peer = kind(RESET_S, canary_s=0.3) if issubclass(kind, Kensho) else kind(RESET_S)  # type: ignore[call-arg]
        if isinstance(peer, Kensho):
            peer.is_canary_slow = True
        call = peer.guard_async(backend.acall)
        for _ in range(3):
            await swallow(call())
        await asyncio.sleep(RESET_S * 1.3)
        backend.takes_s, backend.hits = 1.0, 0
        tasks = []
        for _ in range(10):
            tasks.append(asyncio.ensure_future(swallow(call())))
            await asyncio.sleep(0.05)
        await asyncio.gather(*tasks)
        return backend.hits

    return str(asyncio.run(ask()))


def late_probe(kind: type[Peer]) -> str:
    """Kensho alone has a deadline for probes; a canary that answers after it says nothing."""
    if not issubclass(kind, Kensho):
        return NOT_ASKED
    peer = kind(RESET_S, canary_s=0.05)
    peer.is_canary_slow = True
    call = peer.guard(Backend().call)
    for _ in range(3):
        swallow_call(call)
    time.sleep(RESET_S * 1.3)
    swallow_call(call)
    time.sleep(0.06)
    peer.gate.send(CanaryPassed(peer.pending[0]))
    return "open" if not peer.gate.admits else "closed"


def clock_back(kind: type[Peer]) -> str:
    return _stepped(kind, -3600.0)


def clock_forward(kind: type[Peer]) -> str:
    return _stepped(kind, +3600.0)


def _stepped(kind: type[Peer], by_s: float) -> str:
    """The wall clock is stepped by an hour while open; is the time until the next try still `RESET_S`?"""
    backend, peer = Backend(), kind(RESET_S)
    if isinstance(peer, Kensho):
        peer.canary = lambda: None

    async def once() -> None:
        await swallow(peer.guard_async(backend.acall)())

    tries = (lambda: swallow_call(peer.guard(backend.call))) if kind.has_sync else (lambda: asyncio.run(once()))
    for _ in range(3):
        tries()
    backend.is_dead, backend.hits = False, 0
    with wall_clock_stepped(by_s):
        tries()
        is_early = backend.hits > 0
        time.sleep(RESET_S * 1.3)
        tries()
        tries()
        is_there = backend.hits > 0
    return "opens early" if is_early else "ok" if is_there else "stuck"


@contextlib.contextmanager
def wall_clock_stepped(by_s: float) -> Iterator[None]:
    real_time, by = time.time, datetime.timedelta(seconds=by_s)

    class Stepped(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.now(tz) + by

        @classmethod
        def utcnow(cls) -> Any:
            return datetime.datetime.now(datetime.UTC).replace(tzinfo=None) + by

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("time.time", lambda: real_time() + by_s))
        for name in ("pybreaker", "aiobreaker.state", "aiobreaker.circuitbreaker", "hyx.circuitbreaker.states"):
            with contextlib.suppress(ImportError):
                stack.enter_context(mock.patch.object(importlib.import_module(name), "datetime", Stepped))
        yield


def lost_updates(kind: type[Peer]) -> str:
    """8 threads x 500 failures: is the one that opens the third, whoever counts?"""
    if not kind.has_sync:
        return NOT_ASKED
    backend, peer = Backend(), kind(60.0)
    call = peer.guard(backend.call)
    in_threads(8, lambda: [swallow_call(call) for _ in range(500)])
    return "open" if peer.is_open() and backend.hits <= 3 + 8 else f"{backend.hits} hits"


def in_threads(count: int, work: Callable[[], Any]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


PROBES: tuple[tuple[str, Ask, str], ...] = (
    ("half-open, 50 coroutines, dead backend: hits by users", half_open_async, "0"),
    ("half-open, 20 threads, dead backend: hits by users", half_open_threads, "0"),
    ("closed, 8 threads x 100 ms: side by side?", side_by_side, "yes"),
    ("2 failures, 1 cancel, 1 failure", cancel_between, "open"),
    ("5 cancels alone", cancels_alone, "closed"),
    ("after a cancelled probe", cancelled_probe, "not closed"),
    ("success of a call from before the trip", stale_success, "ignored"),
    ("10 calls while a probe hangs 1 s: hits by users", hung_probe, "0"),
    ("a probe that passes after its deadline", late_probe, "open"),
    ("wall clock 1 h back while open", clock_back, "ok"),
    ("wall clock 1 h forward while open", clock_forward, "ok"),
    ("8 threads x 500 failures", lost_updates, "open"),
)
