"""Breakers behind one face, so that `bench/breaker.py` can ask all of them the same questions.

Each is used as its documentation says, with a threshold of 3 failures. What is not installed is left out, and said.
"""

import asyncio
import importlib
import importlib.metadata
import time
from collections.abc import Awaitable, Callable
from typing import Any

from kensho.app.machine_state import boot_s
from kensho.base.clock import SystemClock
from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Began,
    BreakerSettings,
    CanaryFailed,
    CanaryPassed,
    Effect,
    HostReady,
    RunCanary,
    StartHost,
    Tick,
)
from kensho.resilience.failure_class import FailureClass
from kensho.resilience.gate import Gate
from kensho.resilience.guard import Canary, Guard
from kensho.resilience.surroundings import Surroundings
from kensho.testing.engine import ScriptedEngine

Call = Callable[[], Any]
AsyncCall = Callable[[], Awaitable[Any]]
THRESHOLD = 3
PEERS = ("circuitbreaker", "purgatory", "hyx", "aiobreaker", "pybreaker", "stamina", "tenacity")


class Peer:
    """A fresh breaker that reopens for a try after `reset_s`."""

    name = ""
    has_sync = has_async = True
    is_retry = False

    def __init__(self, reset_s: float) -> None:
        raise NotImplementedError

    def guard(self, call: Call) -> Call:
        raise NotImplementedError

    def guard_async(self, call: AsyncCall) -> AsyncCall:
        raise NotImplementedError

    def is_open(self) -> bool:
        """Whether the next call would be refused without a try."""
        raise NotImplementedError


class Rejected(Exception):
    pass


class Kensho(Peer):
    """`Gate`, used as failover uses it: a permit before, one outcome after. The canary is a call of its own."""

    name = "kensho"

    def __init__(self, reset_s: float, canary: Call = lambda: None, canary_s: float = 5.0) -> None:
        settings = BreakerSettings(open_s=reset_s, jitter=0.0, success_threshold=1, canary_timeout_s=canary_s)
        clock = SystemClock()
        self.canary = canary
        self.canaries = 0
        self.pending: list[int] = []
        self.is_canary_slow = False
        state = breaker.closed(clock.monotonic_s())
        self.gate = Gate(state, settings, now_s=clock.monotonic_s, rng=lambda: 0.5, carry_out=self._carry_out)

    def _carry_out(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, StartHost):
                self.gate.send(HostReady(effect.generation))
            elif isinstance(effect, RunCanary):
                self.canaries += 1
                self.gate.send(Began(effect.generation))
                if self.is_canary_slow:
                    self.pending.append(effect.generation)
                    continue
                try:
                    self.canary()
                except OSError:
                    self.gate.send(CanaryFailed(effect.generation, FailureClass.UNKNOWN))
                else:
                    self.gate.send(CanaryPassed(effect.generation))

    def guard(self, call: Call) -> Call:
        gate = self.gate

        def guarded() -> Any:
            permit = gate.admit()
            if permit is None:
                raise Rejected
            try:
                result = call()
            except Exception:
                gate.failed(permit, FailureClass.UNKNOWN)
                raise
            except BaseException:
                gate.cancelled(permit)
                raise
            gate.succeeded(permit)
            return result

        return guarded

    def guard_async(self, call: AsyncCall) -> AsyncCall:
        gate = self.gate

        async def guarded() -> Any:
            permit = gate.admit()
            if permit is None:
                raise Rejected
            try:
                result = await call()
            except Exception:
                gate.failed(permit, FailureClass.UNKNOWN)
                raise
            except BaseException:
                gate.cancelled(permit)
                raise
            gate.succeeded(permit)
            return result

        return guarded

    def is_open(self) -> bool:
        self.gate.send(Tick())
        return not self.gate.admits


class KenshoPaced(Kensho):
    """The same, telling the gate how long each call took."""

    name = "kensho, timed"

    def guard(self, call: Call) -> Call:
        gate, now = self.gate, time.monotonic

        def guarded() -> Any:
            permit = gate.admit()
            if permit is None:
                raise Rejected
            began_s = now()
            try:
                result = call()
            except Exception:
                gate.failed(permit, FailureClass.UNKNOWN)
                raise
            except BaseException:
                gate.cancelled(permit)
                raise
            gate.succeeded(permit, now() - began_s)
            return result

        return guarded

    def guard_async(self, call: AsyncCall) -> AsyncCall:
        gate, now = self.gate, time.monotonic

        async def guarded() -> Any:
            permit = gate.admit()
            if permit is None:
                raise Rejected
            began_s = now()
            try:
                result = await call()
            except Exception:
                gate.failed(permit, FailureClass.UNKNOWN)
                raise
            except BaseException:
                gate.cancelled(permit)
                raise
            gate.succeeded(permit, now() - began_s)
            return result

        return guarded


class KenshoGuard(Peer):
    """`Guard`, as a stream uses it: the gate, timed, and whether the machine slept."""

    name = "kensho guard"

    def __init__(self, reset_s: float) -> None:
        self.guard_ = Guard(
            ScriptedEngine("primary"),
            Canary([1], [1]),
            model="m",
            settings=BreakerSettings(open_s=reset_s),
            clock=SystemClock(),
            rng=lambda: 0.5,
            emit=lambda _: None,
            on_change=lambda: None,
            surroundings=Surroundings(boot_s=boot_s),
        )

    def guard(self, call: Call) -> Call:
        guard, now = self.guard_, time.monotonic

        def guarded() -> Any:
            permit = guard.admit()
            if permit is None:
                raise Rejected
            began_s = now()
            try:
                result = call()
            except Exception:
                guard.failed(permit, FailureClass.UNKNOWN)
                raise
            except BaseException:
                guard.cancelled(permit)
                raise
            guard.succeeded(permit, now() - began_s)
            return result

        return guarded

    def guard_async(self, call: AsyncCall) -> AsyncCall:
        guard, now = self.guard_, time.monotonic

        async def guarded() -> Any:
            permit = guard.admit()
            if permit is None:
                raise Rejected
            began_s = now()
            try:
                result = await call()
            except Exception:
                guard.failed(permit, FailureClass.UNKNOWN)
                raise
            except BaseException:
                guard.cancelled(permit)
                raise
            guard.succeeded(permit, now() - began_s)
            return result

        return guarded


class CircuitBreaker(Peer):
    name = "circuitbreaker"

    def __init__(self, reset_s: float) -> None:
        library = importlib.import_module("circuitbreaker")
        self.breaker = library.CircuitBreaker(failure_threshold=THRESHOLD, recovery_timeout=reset_s)

    def guard(self, call: Call) -> Call:
        return self.breaker(call)  # type: ignore[no-any-return]

    def guard_async(self, call: AsyncCall) -> AsyncCall:
        return self.breaker(call)  # type: ignore[no-any-return]

    def is_open(self) -> bool:
        return bool(self.breaker.opened)


class Purgatory(Peer):
    name = "purgatory"

    def __init__(self, reset_s: float) -> None:
        library = importlib.import_module("purgatory")
        self.sync = library.SyncCircuitBreakerFactory(default_threshold=THRESHOLD, default_ttl=reset_s)
        self.factory = library.AsyncCircuitBreakerFactory(default_threshold=THRESHOLD, default_ttl=reset_s)
        self.context: Any = None

    def guard(self, call: Call) -> Call:
        self.context = self.sync.get_breaker("b").context
        return self.sync("b")(call)  # type: ignore[no-any-return]

    def guard_async(self, call: AsyncCall) -> AsyncCall:
        async def named() -> Any:
            return await call()

        return self.factory("b")(named)  # type: ignore[no-any-return]

    def is_open(self) -> bool:
        context = self.context or asyncio.run(self.factory.get_breaker("b")).context
        return str(context.state) == "opened"


class Hyx(Peer):
    name = "hyx"
    has_sync = False

    def __init__(self, reset_s: float) -> None:
        library = importlib.import_module("hyx.circuitbreaker")
        self.breaker = library.consecutive_breaker(
            failure_threshold=THRESHOLD, recovery_time_secs=reset_s, recovery_threshold=1
        )

    def guard_async(self, call: AsyncCall) -> AsyncCall:
        return self.breaker(call)  # type: ignore[no-any-return]

    def is_open(self) -> bool:
        return str(self.breaker.state.NAME) == "failing" and bool(self.breaker.state.remain)


class AioBreaker(Peer):
    name = "aiobreaker"

    def __init__(self, reset_s: float) -> None:
        from datetime import timedelta

        library = importlib.import_module("aiobreaker")
        self.breaker = library.CircuitBreaker(fail_max=THRESHOLD, timeout_duration=timedelta(seconds=reset_s))

    def guard(self, call: Call) -> Call:
        return lambda: self.breaker.call(call)

    def guard_async(self, call: AsyncCall) -> AsyncCall:
        return lambda: self.breaker.call_async(call)

    def is_open(self) -> bool:
        return str(self.breaker.current_state.name) == "OPEN"


class PyBreaker(Peer):
    name = "pybreaker"
    has_async = False

    def __init__(self, reset_s: float) -> None:
        library = importlib.import_module("pybreaker")
        self.breaker = library.CircuitBreaker(fail_max=THRESHOLD, reset_timeout=reset_s)

    def guard(self, call: Call) -> Call:
        return lambda: self.breaker.call(call)

    def is_open(self) -> bool:
        return str(self.breaker.current_state) == "open"


class Tenacity(Peer):
    name = "tenacity"
    is_retry = True

    def __init__(self, reset_s: float) -> None:
        library = importlib.import_module("tenacity")
        self.retry = library.retry(stop=library.stop_after_attempt(THRESHOLD))

    def guard(self, call: Call) -> Call:
        return self.retry(call)  # type: ignore[no-any-return]

    guard_async = guard


class Stamina(Tenacity):
    name = "stamina"

    def __init__(self, reset_s: float) -> None:
        library = importlib.import_module("stamina")
        self.retry = library.retry(on=OSError, attempts=THRESHOLD)


KINDS: tuple[type[Peer], ...] = (
    *(Kensho, KenshoPaced, KenshoGuard, CircuitBreaker, Purgatory, Hyx, AioBreaker, PyBreaker),
    *(Tenacity, Stamina),
)


def installed() -> tuple[list[type[Peer]], list[str]]:
    """The kinds that can be measured here, and the names of those that are absent."""
    there: list[type[Peer]] = []
    absent = []
    for kind in KINDS:
        try:
            kind(1.0)
        except ImportError:
            absent.append(kind.name)
        else:
            there.append(kind)
    return there, absent
