"""The circuit as a thing: it keeps the state of `breaker.step`, and spares it the calls that change only counters.

    permit = gate.admit()                    # None: not now
    if permit is not None:
        gate.succeeded(permit, pace_s)       # or failed, or cancelled: exactly one of them

Two paths need no step: a call to a healthy engine (CLOSED, no failure since the last success), and a refusal while
nothing is due. Their counts wait here as plain numbers and are put into the state before anything else looks at it, so
that it is always the one that `step` alone would have reached (tests/resilience/test_gate.py compares them). Measured
0.3 us a call instead of 45.

May be used from several threads: the state is behind a lock, and effects are carried out after it is released, by
whichever thread caused them, through `carry_out`.
"""

import math
import threading
from collections.abc import Callable

from kensho.base.backoff import Rng
from kensho.base.clock import Seconds
from kensho.base.structs import replace
from kensho.resilience import breaker
from kensho.resilience.breaker_rates import counted, tracked
from kensho.resilience.circuit import (
    ADMITTING,
    Admit,
    Admitted,
    BreakerSettings,
    Cancelled,
    Effect,
    Failed,
    Input,
    Mode,
    State,
    Succeeded,
)
from kensho.resilience.failure_class import FailureClass

_NEVER: Seconds = float("inf")


class Gate:
    """`now_s` is a monotonic clock; `carry_out` gets the effects of each step that are not answers to `admit`."""

    __slots__ = (
        "_admits_all",
        "_baseline_calls",
        "_baseline_s",
        "_carry_out",
        "_due_s",
        "_last_success_s",
        "_lock",
        "_now_s",
        "_permit",
        "_quick_until_s",
        "_rejected",
        "_rng",
        "_settings",
        "_state",
        "_succeeded",
        "_usual_s",
    )

    _state: State
    _permit: int | None
    """For everybody, while nothing but an outcome can change the circuit."""
    _admits_all: bool
    _due_s: Seconds
    """When a refusal may no longer be quick."""
    _quick_until_s: Seconds
    """Until when a success may be quick; in the past if it may not."""
    _usual_s: Seconds
    """The longest pace that is not slow."""
    _baseline_s: Seconds
    _baseline_calls: int
    _last_success_s: Seconds

    def __init__(
        self,
        state: State,
        settings: BreakerSettings,
        *,
        now_s: Callable[[], Seconds],
        rng: Rng,
        carry_out: Callable[[tuple[Effect, ...]], None],
    ) -> None:
        self._settings = settings
        self._now_s = now_s
        self._rng = rng
        self._carry_out = carry_out
        self._lock = threading.Lock()
        self._rejected = self._succeeded = 0
        self._take(state)

    @property
    def state(self) -> State:
        """As `step` left it, with everything counted since. Time that has passed is not applied: send a Tick."""
        with self._lock:
            return self._fold()

    @property
    def admits(self) -> bool:
        """Whether a request would be admitted now."""
        return self._admits_all

    def admit(self) -> int | None:
        """A permit, to be settled exactly once by `succeeded`, `failed` or `cancelled`; None: not now."""
        permit = self._permit
        if permit is not None:  # without the lock: whoever changes it a moment later makes this permit a stale one
            return permit
        with self._lock:
            if not self._admits_all and self._now_s() < self._due_s:
                self._rejected += 1
                return None
        effects = self.send(Admit())
        return next((effect.generation for effect in effects if isinstance(effect, Admitted)), None)

    def succeeded(self, permit: int, pace_s: Seconds | None = None) -> None:
        """`pace_s`: how long one unit of the work took, None if nobody measured it."""
        with self._lock:
            now_s = self._now_s()
            if now_s < self._quick_until_s and permit == self._permit:
                if pace_s is None:
                    self._succeeded += 1
                    self._last_success_s = now_s
                    return
                if pace_s <= self._usual_s:
                    self._succeeded += 1
                    self._last_success_s = now_s
                    self._baseline_s = baseline_s = tracked(pace_s, self._baseline_s, self._baseline_calls)
                    self._baseline_calls += 1
                    self._usual_s = baseline_s * self._settings.slow_factor
                    return
        self.send(Succeeded(permit, pace_s))

    def failed(self, permit: int, failure: FailureClass) -> None:
        self.send(Failed(permit, failure))

    def cancelled(self, permit: int) -> None:
        self.send(Cancelled(permit))

    def send(self, event: Input) -> tuple[Effect, ...]:
        """One step, its effects carried out. Returns them, for their answers. Raises ConfigError for a bad Force."""
        with self._lock:
            state, effects = breaker.step(self._fold(), event, self._now_s(), self._settings, self._rng())
            self._take(state)
        self._carry_out(effects)
        return effects

    def _fold(self) -> State:
        """The state with what was counted beside it. The lock is held."""
        state, succeeded = self._state, self._succeeded
        if self._rejected or succeeded:
            counters = state.counters
            counters = replace(
                counters,
                rejected=counters.rejected + self._rejected,
                successes=counters.successes + succeeded,
                last_success_s=self._last_success_s if succeeded else counters.last_success_s,
            )
            state = replace(state, counters=counters)
            if succeeded:
                bucket = int(self._last_success_s // self._settings.bucket_s)
                state = replace(
                    state,
                    rates=counted(state.rates, bucket, calls=succeeded),
                    baseline_s=self._baseline_s,
                    baseline_calls=self._baseline_calls,
                )
            self._state = state
            self._rejected = self._succeeded = 0
        return state

    def _take(self, state: State) -> None:
        """What the quick paths must know of a state. The lock is held."""
        self._state = state
        self._admits_all = state.mode in ADMITTING
        self._permit = state.generation if self._admits_all and state.until_s is None else None
        self._due_s = _NEVER if state.until_s is None else state.until_s
        self._baseline_s, self._baseline_calls = state.baseline_s, state.baseline_calls
        self._usual_s = state.baseline_s * self._settings.slow_factor
        is_quick = state.mode is Mode.CLOSED and state.weight == 0
        # All that is counted here falls into one bucket of the rates: the step at its end begins the next one.
        bucket = int(self._now_s() // self._settings.bucket_s)
        # (The last moment of a bucket takes the long way, whichever way the product was rounded.)
        ends_s = math.nextafter((bucket + 1) * self._settings.bucket_s, 0.0)
        self._quick_until_s = ends_s if is_quick else -_NEVER
