"""Is this engine healthy? A circuit breaker (row S1) as a pure function. No clock, no timer, no engine, no randomness.

    state, effects = step(state, event, now_s, settings, draw)

Rules: (1) `now_s` is monotonic; wall clocks are never read, so a stepped clock cannot hold a circuit open.
(2) Every entry into a mode, and every canary, has a new generation number; a result that carries an older one
changes counters, never the mode. (3) A user's request is never the probe: HALF_OPEN admits nobody and runs a canary
(a fixed prompt with known ids), one at a time, under a deadline. (4) A cancelled call or canary is no verdict.
(5) Time is applied before every input, so a late timer changes nothing but the moment.

| mode          | admits | leaves when |
|---------------|--------|-------------|
| CLOSED        | all    | weighted failures in a row reach the threshold -> OPEN; crash, hang, sticky -> RESTARTING |
| OPEN          | nobody | the wait is over -> HALF_OPEN, or RESTARTING if the host was killed |
| HALF_OPEN     | nobody | enough canaries passed -> CLOSED; one failed or was late -> OPEN; third dead host HARD_OPEN |
| RESTARTING    | nobody | host ready -> HALF_OPEN; start failed -> OPEN for a moment; at the third time HARD_OPEN |
| HARD_OPEN     | nobody | a person says so (`Force`) |
| FORCED_OPEN   | nobody | a person says so |
| FORCED_CLOSED | all    | a person says so |

Saturation is no sickness: it never opens a circuit (see `admission.py`; simulated: doing so costs three quarters of
the goodput).
"""

from typing import assert_never

from kensho.base.clock import Seconds
from kensho.base.errors import ConfigError
from kensho.base.structs import Struct, replace
from kensho.resilience.circuit import (
    Admit,
    Admitted,
    BreakerSettings,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Cancelled,
    Changed,
    Counters,
    Effect,
    Failed,
    Force,
    HostFailed,
    HostReady,
    Input,
    KillHost,
    Mode,
    Rejected,
    RunCanary,
    SetTimer,
    StartHost,
    State,
    Succeeded,
    Tick,
)
from kensho.resilience.classify import FailureClass

ADMITTING = frozenset({Mode.CLOSED, Mode.FORCED_CLOSED})

RESTART_AT_ONCE = frozenset({FailureClass.CRASH, FailureClass.HANG, FailureClass.STICKY})

WEIGHTS = {
    FailureClass.UNKNOWN: 1,
    FailureClass.WRONG_NUMBERS: 2,
    FailureClass.TIMEOUT: 3,
    FailureClass.MISMATCH: 3,
}
"""How much one failure counts against the threshold. Guess: at the defaults two NaNs or one time-out open."""

Result = tuple[State, tuple[Effect, ...]]


def closed(now_s: Seconds) -> State:
    """The state of an engine that has given no reason for doubt, whether it is loaded yet or not."""
    return State(Mode.CLOSED, generation=1, entered_s=now_s, reason="no failure seen")


def step(state: State, event: Input, now_s: Seconds, settings: BreakerSettings, draw: float = 0.5) -> Result:
    """The next state and what to do. Pure; O(1).

    `now_s` never goes back between calls. `draw` is a fresh number in [0, 1) for the jitter; 0.5 means none.
    Raises ConfigError only for a `Force` to a mode that cannot be forced.
    """
    at = _Moment(now_s, settings, draw)
    state, before = _pass_time(state, at)
    state, after = _apply(state, event, at)
    return state, before + after


class Snapshot(Struct):
    """Row S3, for status and metrics. Ages instead of times: a point on the monotonic clock means nothing elsewhere."""

    mode: Mode
    reason: str
    weighted_failures: int
    canaries_passed: int
    in_mode_s: Seconds
    leaves_in_s: Seconds | None
    """Until time alone changes the mode ("fallback until"); None if it does not."""
    last_success_ago_s: Seconds | None
    last_failure_ago_s: Seconds | None
    counters: Counters


def snapshot(state: State, now_s: Seconds) -> Snapshot:
    counters = state.counters
    return Snapshot(
        mode=state.mode,
        reason=state.reason,
        weighted_failures=state.weight,
        canaries_passed=state.passes,
        in_mode_s=now_s - state.entered_s,
        leaves_in_s=None if state.until_s is None else max(0.0, state.until_s - now_s),
        last_success_ago_s=None if counters.last_success_s is None else now_s - counters.last_success_s,
        last_failure_ago_s=None if counters.last_failure_s is None else now_s - counters.last_failure_s,
        counters=counters,
    )


class _Moment(Struct):
    now_s: Seconds
    settings: BreakerSettings
    draw: float

    def jittered(self, duration_s: Seconds) -> Seconds:
        return duration_s * (1.0 + self.settings.jitter * (2.0 * self.draw - 1.0))


def _pass_time(state: State, at: _Moment) -> Result:
    if state.mode is Mode.HALF_OPEN and state.until_s is None:
        return _run_canary(state, at)
    if state.until_s is None or at.now_s < state.until_s:
        return state, ()
    if state.mode is Mode.OPEN and state.must_restart:
        return _restart(state, at, "the wait is over")
    if state.mode is Mode.OPEN:
        return _half_open(state, at, "the wait is over")
    if state.mode is Mode.HALF_OPEN:
        return _canary_failed(state, FailureClass.HANG, at)
    return _start_failed(state, at, f"no start within {at.settings.start_timeout_s:g} s")


def _apply(state: State, event: Input, at: _Moment) -> Result:
    match event:
        case Tick():
            return state, ()
        case Admit():
            return _admit(state, at)
        case Force(mode):
            return _force(state, mode, at)
        case Succeeded(generation) | Failed(generation) | Cancelled(generation):
            is_current = generation == state.generation and state.mode in ADMITTING
            return _settle(state, event, at) if is_current else _stale(state)
        case CanaryPassed(generation) | CanaryFailed(generation) | CanaryCancelled(generation):
            is_current = generation == state.generation and state.mode is Mode.HALF_OPEN
            return _judge_canary(state, event, at) if is_current else _stale(state)
        case HostReady(generation):
            is_current = generation == state.generation and state.mode is Mode.RESTARTING
            return _half_open(state, at, "the host is up") if is_current else _stale(state)
        case HostFailed(generation):
            is_current = generation == state.generation and state.mode is Mode.RESTARTING
            return _start_failed(state, at, "the start failed") if is_current else _stale(state)
        case _:
            assert_never(event)


def _admit(state: State, at: _Moment) -> Result:
    if state.mode in ADMITTING:
        return _count(state, admitted=state.counters.admitted + 1), (Admitted(state.generation),)
    wait_s = None if state.until_s is None else state.until_s - at.now_s
    return _count(state, rejected=state.counters.rejected + 1), (Rejected(state.mode, wait_s),)


def _settle(state: State, event: Succeeded | Failed | Cancelled, at: _Moment) -> Result:
    counters = state.counters
    if isinstance(event, Cancelled):
        return _count(state, cancelled=counters.cancelled + 1), ()
    if isinstance(event, Succeeded):
        state = _count(state, successes=counters.successes + 1, last_success_s=at.now_s)
        return replace(state, weight=0), ()
    state = _count(state, failures=counters.failures + 1, last_failure_s=at.now_s)
    if state.mode is Mode.FORCED_CLOSED:
        return state, ()
    if event.failure in RESTART_AT_ONCE:
        return _restart(state, at, f"a request failed: {event.failure}", must_kill=True)
    state = replace(state, weight=state.weight + WEIGHTS[event.failure])
    if state.weight < at.settings.failure_threshold:
        return state, ()
    if at.now_s - state.entered_s >= at.settings.forget_trips_s:
        state = replace(state, trips=0)
    return _open(state, at, f"too many failures in a row, the last: {event.failure}")


def _judge_canary(state: State, event: CanaryPassed | CanaryFailed | CanaryCancelled, at: _Moment) -> Result:
    if isinstance(event, CanaryCancelled):
        return replace(state, until_s=None), (SetTimer(at.now_s),)
    if isinstance(event, CanaryFailed):
        return _canary_failed(state, event.failure, at)
    state = replace(state, passes=state.passes + 1)
    if state.passes < at.settings.success_threshold:
        return _run_canary(state, at)
    return _enter(state, at, Mode.CLOSED, f"canaries passed: {state.passes}", "requests go to it again")


def _canary_failed(state: State, failure: FailureClass, at: _Moment) -> Result:
    state = _count(state, failures=state.counters.failures + 1, last_failure_s=at.now_s)
    reason = f"the canary failed: {failure}"
    if failure in {FailureClass.CRASH, FailureClass.STICKY}:
        return _start_failed(state, at, reason)
    return _open(state, at, reason, must_restart=failure is FailureClass.HANG)


def _start_failed(state: State, at: _Moment, reason: str) -> Result:
    window_s = at.settings.failed_starts_window_s
    failed_s = (*(t for t in state.failed_starts_s if at.now_s - t < window_s), at.now_s)
    state = replace(state, failed_starts_s=failed_s)
    if len(failed_s) >= at.settings.max_failed_starts:
        reason = f"start_loop: {len(failed_s)} starts failed within {window_s:g} s, the last: {reason}"
        state, effects = _enter(state, at, Mode.HARD_OPEN, reason, "it stays off until a person lets it start again")
    else:
        wait_s = at.jittered(at.settings.restart_open_s)
        state, effects = _enter(state, at, Mode.OPEN, reason, f"another start in {wait_s:.1f} s", lasts_s=wait_s)
        state = replace(state, must_restart=True)
    return state, (*effects, KillHost())


def _open(state: State, at: _Moment, reason: str, must_restart: bool = False) -> Result:
    cap_s = at.settings.open_cap_s
    doubled_s = at.settings.open_s * 2.0 ** min(state.trips, 30)
    wait_s = min(cap_s, at.jittered(min(cap_s, doubled_s)))
    next_step = f"{'a new start' if must_restart else 'a canary'} in {wait_s:.1f} s"
    state, effects = _enter(state, at, Mode.OPEN, reason, next_step, lasts_s=wait_s)
    state = replace(state, trips=state.trips + 1, must_restart=must_restart)
    return state, (*effects, KillHost()) if must_restart else effects


def _restart(state: State, at: _Moment, reason: str, must_kill: bool = False) -> Result:
    next_step = "starting it, then a canary"
    state, effects = _enter(state, at, Mode.RESTARTING, reason, next_step, lasts_s=at.settings.start_timeout_s)
    state = _count(state, restarts=state.counters.restarts + 1)
    kill = (KillHost(),) if must_kill else ()
    return state, (*effects, *kill, StartHost(state.generation))


def _half_open(state: State, at: _Moment, reason: str) -> Result:
    next_step = f"canaries that must pass: {at.settings.success_threshold}"
    state, entered = _enter(state, at, Mode.HALF_OPEN, reason, next_step)
    state, effects = _run_canary(state, at)
    return state, entered + effects


def _run_canary(state: State, at: _Moment) -> Result:
    until_s = at.now_s + at.settings.canary_timeout_s
    state = replace(state, generation=state.generation + 1, until_s=until_s)
    state = _count(state, canaries=state.counters.canaries + 1)
    return state, (RunCanary(state.generation), SetTimer(until_s))


def _force(state: State, mode: Mode | None, at: _Moment) -> Result:
    if mode is None:
        if state.mode not in {Mode.FORCED_OPEN, Mode.FORCED_CLOSED, Mode.HARD_OPEN}:
            return state, ()
        return _restart(replace(state, failed_starts_s=(), trips=0), at, "a person gave it back")
    if mode not in {Mode.FORCED_OPEN, Mode.FORCED_CLOSED}:
        raise ConfigError(f"a circuit cannot be forced to {mode}", advice="force it open or closed, or give it back")
    gets = "no requests" if mode is Mode.FORCED_OPEN else "requests whatever happens"
    return _enter(state, at, mode, "a person said so", f"it gets {gets} until a person gives it back")


def _enter(
    state: State, at: _Moment, mode: Mode, reason: str, next_step: str, *, lasts_s: Seconds | None = None
) -> Result:
    until_s = None if lasts_s is None else at.now_s + lasts_s
    after = replace(
        state,
        mode=mode,
        generation=state.generation + 1,
        entered_s=at.now_s,
        reason=reason,
        until_s=until_s,
        weight=0,
        passes=0,
        must_restart=False,
    )
    changed = Changed(state.mode, mode, reason, next_step)
    return after, (changed,) if until_s is None else (changed, SetTimer(until_s))


def _stale(state: State) -> Result:
    return _count(state, stale=state.counters.stale + 1), ()


def _count(state: State, **changes: float) -> State:
    return replace(state, counters=replace(state.counters, **changes))
