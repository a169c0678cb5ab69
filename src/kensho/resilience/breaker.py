"""Is this engine healthy? A circuit breaker (row S1) as a pure function. No clock, no timer, no engine, no randomness.

    state, effects = step(state, event, now_s, settings, draw)

Rules: (1) `now_s` is monotonic; wall clocks are never read, so a stepped clock cannot hold a circuit open.
(2) Every entry into a mode, and every canary, has a new generation number; a result that carries an older one
changes counters, never the mode. (3) A user's request is never the probe: HALF_OPEN admits nobody and runs a canary
(a fixed prompt with known ids), one at a time, under a deadline that runs from when it has the engine for itself.
(4) A cancelled call or canary is no verdict, and the next canary is not at once. (5) Time is applied before every
input, so a late timer changes nothing but the moment. (6) A good call never opens.

| mode          | admits | leaves when |
|---------------|--------|-------------|
| CLOSED        | all    | failures in a row, or rates, too high -> OPEN; crash, hang, sticky -> RESTARTING; see below |
| OPEN          | nobody | the wait is over -> HALF_OPEN, or RESTARTING if the host was killed |
| HALF_OPEN     | nobody | enough canaries passed -> CLOSED; one failed or was late -> OPEN; too often -> HARD_OPEN |
| RESTARTING    | nobody | host ready -> HALF_OPEN; start failed -> OPEN for a moment; too often -> HARD_OPEN |
| HARD_OPEN     | nobody | the machine or the engine's version has changed, or a person says so -> RESTARTING |
| FORCED_OPEN   | nobody | a person says so, or the time of the word is over -> RESTARTING |
| FORCED_CLOSED | all    | as above |
| METRICS_ONLY  | all    | as above; until then it says when it would have opened |

A lost device and a mismatched driver lead to HARD_OPEN from anywhere: a new process would not help. After the machine
slept, CLOSED goes to HALF_OPEN. `transitions.py` has the whole table.

Saturation is no sickness: it never opens a circuit (see `admission.py`; simulated: doing so costs three quarters of
the goodput).
"""

from typing import assert_never

from kensho.base.clock import Seconds
from kensho.base.errors import ConfigError
from kensho.base.structs import replace
from kensho.resilience.breaker_moves import (
    Moment,
    begin_time,
    count,
    enter,
    forget,
    give_back,
    go_half_open,
    go_hard_open,
    go_open,
    go_restarting,
    look_again,
    rest,
    run_canary,
    try_again,
    wait_for_canary,
    wait_for_restart,
)
from kensho.resilience.breaker_rates import Rates, counted, is_slow, tracked
from kensho.resilience.circuit import (
    ADMITTING,
    FORCED,
    Admit,
    Admitted,
    Began,
    BreakerSettings,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Cancelled,
    Failed,
    Force,
    HardReason,
    HostFailed,
    HostReady,
    HostUnkillable,
    Hurry,
    Input,
    Looked,
    Mode,
    Rejected,
    Result,
    Resumed,
    SetTimer,
    State,
    Succeeded,
    Tick,
    WouldOpen,
)
from kensho.resilience.failure_class import NO_ROOM, RESTARTS_AT_ONCE, WEIGHTS, FailureClass

_HARD = {
    FailureClass.DEVICE_LOST: HardReason.DEVICE_LOST,
    FailureClass.DRIVER_MISMATCH: HardReason.DRIVER_MISMATCH,
}


def closed(now_s: Seconds, fingerprint: str = "") -> State:
    """The state of an engine that has given no reason for doubt, whether it is loaded yet or not."""
    return State(Mode.CLOSED, generation=1, entered_s=now_s, reason="no failure seen", fingerprint=fingerprint)


def share(state: State, now_s: Seconds, settings: BreakerSettings) -> float:
    """Which share of the requests should prefer this engine while another one is free: 0.1, 0.5, then 1."""
    since_s = now_s - state.entered_s
    if not state.ramps or since_s >= settings.ramp_s:
        return 1.0
    return 0.5 if since_s >= settings.ramp_s / 2 else 0.1


def step(state: State, event: Input, now_s: Seconds, settings: BreakerSettings, draw: float = 0.5) -> Result:
    """The next state and what to do. Pure; O(1).

    `now_s` never goes back between calls. `draw` is a fresh number in [0, 1) for the jitter; 0.5 means none.
    Raises ConfigError only for a `Force` to a mode that cannot be forced. 20 to 100 us: `gate.Gate` spares it the
    calls that change nothing but counters.
    """
    at = Moment(now_s, settings, draw)
    state, before = _pass_time(state, at)
    state, after = _apply(state, event, at)
    return state, before + after


def _pass_time(state: State, at: Moment) -> Result:
    if state.until_s is None or at.now_s < state.until_s:
        return state, ()
    match state.mode:
        case Mode.OPEN:
            # Only a circuit that begins with its program has nothing to wait for, and its own reason to tell.
            return try_again(state, at, state.reason if state.until_s == state.entered_s else "the wait is over")
        case Mode.HALF_OPEN:
            return run_canary(state, at) if state.is_resting else _canary_failed(state, FailureClass.HANG, at)
        case Mode.RESTARTING:
            return _start_failed(state, at, f"no start within {at.settings.start_timeout_s:g} s")
        case Mode.HARD_OPEN:
            return look_again(state, at)
        case Mode.FORCED_OPEN | Mode.FORCED_CLOSED | Mode.METRICS_ONLY:
            return give_back(state, at, "the time of a person's word is over")
        case Mode.CLOSED:  # has no timer
            return state, ()
        case _:
            assert_never(state.mode)


def _apply(state: State, event: Input, at: Moment) -> Result:
    match event:
        case Tick():
            return state, ()
        case Admit():
            return _admit(state)
        case Succeeded(generation) | Failed(generation) | Cancelled(generation):
            is_current = generation == state.generation and state.mode in ADMITTING
            return _settle(state, event, at) if is_current else _stale(state)
        case Began(generation):
            is_awaited = state.mode in {Mode.HALF_OPEN, Mode.RESTARTING} and state.until_s is None
            return begin_time(state, at) if is_awaited and generation == state.generation else (state, ())
        case CanaryPassed(generation) | CanaryFailed(generation) | CanaryCancelled(generation):
            is_current = generation == state.generation and state.mode is Mode.HALF_OPEN
            return _judge_canary(state, event, at) if is_current else _stale(state)
        case HostReady(generation) | HostFailed(generation):
            is_current = generation == state.generation and state.mode is Mode.RESTARTING
            return _judge_start(state, event, at) if is_current else _stale(state)
        case HostUnkillable():
            return _unkillable(state, at)
        case Looked(generation):
            is_current = generation == state.generation and state.mode is Mode.HARD_OPEN
            return _looked(state, event, at) if is_current else _stale(state)
        case Resumed():
            is_trusted = state.mode is Mode.CLOSED
            return go_half_open(forget(state, at), at, "the machine slept") if is_trusted else (state, ())
        case Hurry():
            return _hurry(state, at) if state.mode is Mode.OPEN else (state, ())
        case Force(mode, for_s):
            return _force(state, mode, for_s, at)
        case _:
            assert_never(event)


def _admit(state: State) -> Result:
    if state.mode in ADMITTING:
        return state, (Admitted(state.generation),)
    return count(state, rejected=state.counters.rejected + 1), (Rejected(),)


# --- requests ---


def _settle(state: State, event: Succeeded | Failed | Cancelled, at: Moment) -> Result:
    counters = state.counters
    if isinstance(event, Cancelled):
        return count(state, cancelled=counters.cancelled + 1), ()
    if isinstance(event, Succeeded):
        state = count(state, successes=counters.successes + 1, last_success_s=at.now_s)
        return (state, ()) if state.mode is Mode.FORCED_CLOSED else _succeeded(state, event.pace_s, at)
    state = count(state, failures=counters.failures + 1, last_failure_s=at.now_s)
    return (state, ()) if state.mode is Mode.FORCED_CLOSED else _failed(state, event.failure, at)


def _succeeded(state: State, pace_s: Seconds | None, at: Moment) -> Result:
    settings, bucket = at.settings, at.bucket()
    state = replace(state, weight=0)
    if pace_s is None:
        return replace(state, rates=counted(state.rates, bucket)), ()
    if not is_slow(pace_s, state.baseline_s, state.baseline_calls, settings.slow_factor):
        return replace(
            state,
            rates=counted(state.rates, bucket),
            baseline_s=tracked(pace_s, state.baseline_s, state.baseline_calls),
            baseline_calls=state.baseline_calls + 1,
        ), ()
    state = count(state, slow=state.counters.slow + 1)
    return _judge_rates(replace(state, rates=counted(state.rates, bucket, slow=1)), at)


def _failed(state: State, failure: FailureClass, at: Moment) -> Result:
    state = forget(state, at)
    why = f"a request failed: {failure}"
    hard = _HARD.get(failure)
    is_grave = hard is not None or failure in RESTARTS_AT_ONCE
    if is_grave and state.mode is Mode.METRICS_ONLY:
        return _would_open(state, why)
    if hard is not None:
        return go_hard_open(state, hard, at, why)
    if failure in RESTARTS_AT_ONCE:
        return _crashed(state, at, why)
    if failure is FailureClass.OUT_OF_MEMORY:
        before_s, state = state.last_oom_s, replace(state, last_oom_s=at.now_s)
        if before_s is not None and at.now_s - before_s <= at.settings.oom_window_s:
            why = f"no memory, twice within {at.settings.oom_window_s:g} s"
            return _would_open(state, why) if state.mode is Mode.METRICS_ONLY else _crashed(state, at, why)
    state = replace(
        state,
        weight=state.weight + WEIGHTS.get(failure, at.settings.failure_threshold),
        rates=counted(state.rates, at.bucket(), failures=1),
    )
    if state.weight < at.settings.failure_threshold:
        return _judge_rates(state, at)
    return _trip(state, at, f"too many failures in a row, the last: {failure}")


def _judge_rates(state: State, at: Moment) -> Result:
    settings = at.settings
    why = state.rates.is_high(
        least=settings.min_calls, failure_rate=settings.failure_rate, slow_rate=settings.slow_rate
    )
    return _trip(state, at, why) if why else (state, ())


def _trip(state: State, at: Moment, why: str) -> Result:
    if state.mode is Mode.METRICS_ONLY:
        return _would_open(state, why)
    return go_open(forget(state, at), at, why)


def _would_open(state: State, why: str) -> Result:
    return replace(state, weight=0, rates=Rates(state.rates.bucket), last_oom_s=None), (WouldOpen(why),)


def _crashed(state: State, at: Moment, why: str) -> Result:
    settings = at.settings
    recent = (*(t for t in state.restarts_s if at.now_s - t < settings.failed_starts_window_s), at.now_s)
    state = replace(state, restarts_s=recent)  # no more than the waits below let happen within the window
    too_many = len(recent) - settings.free_restarts
    if too_many <= 0:
        return go_restarting(state, at, why, must_kill=True)
    wait_s = at.doubled(settings.restart_open_s, too_many - 1)
    why = f"{why}; it is the {len(recent)}th within {settings.failed_starts_window_s:g} s"
    return wait_for_restart(state, at, why, wait_s)


# --- canaries and starts ---


def _judge_canary(state: State, event: CanaryPassed | CanaryFailed | CanaryCancelled, at: Moment) -> Result:
    if isinstance(event, CanaryCancelled):
        return rest(state, at)
    if isinstance(event, CanaryFailed):
        return _canary_failed(state, event.failure, at)
    state = replace(state, passes=state.passes + 1)
    if state.passes < at.settings.success_threshold:
        return run_canary(state, at)
    why = f"canaries passed: {state.passes}"
    state, effects = enter(state, at, Mode.CLOSED, why, "requests go to it again, by and by")
    return replace(state, ramps=True, mismatches=0, shortages=0), effects


def _canary_failed(state: State, failure: FailureClass, at: Moment) -> Result:
    state = count(state, canaries_failed=state.counters.canaries_failed + 1, last_failure_s=at.now_s)
    why = f"the canary failed: {failure}"
    if failure in _HARD:
        return go_hard_open(state, _HARD[failure], at, why)
    if failure is FailureClass.SHORTAGE:
        return _no_room(state, at, why, must_restart=False)
    is_wrong = failure in {FailureClass.MISMATCH, FailureClass.WRONG_NUMBERS}
    state = replace(state, mismatches=state.mismatches + 1 if is_wrong else 0)
    if state.mismatches >= at.settings.max_mismatches:
        why = f"{why}, in {state.mismatches} processes in a row"
        return go_hard_open(state, HardReason.OUTPUT_MISMATCH, at, why)
    if failure in {FailureClass.CRASH, FailureClass.STICKY}:
        return _start_failed(state, at, why)
    return go_open(state, at, why, must_restart=failure is not FailureClass.UNKNOWN)


def _judge_start(state: State, event: HostReady | HostFailed, at: Moment) -> Result:
    if isinstance(event, HostReady):
        return go_half_open(state, at, "the host is up")
    why = f"the start failed: {event.failure}"
    if event.failure in _HARD:
        return go_hard_open(state, _HARD[event.failure], at, why)
    if event.failure in NO_ROOM:
        return _no_room(state, at, why, must_restart=True)
    return _start_failed(state, at, why)


def _no_room(state: State, at: Moment, why: str, *, must_restart: bool) -> Result:
    """The machine's want, and not this engine's illness: it is tried again for as long as it takes."""
    wait_s = at.doubled(at.settings.restart_open_s, state.shortages)
    state = replace(state, shortages=state.shortages + 1)
    why = f"{why}; the machine has no room for it"
    return wait_for_restart(state, at, why, wait_s) if must_restart else wait_for_canary(state, at, why, wait_s)


def _start_failed(state: State, at: Moment, why: str) -> Result:
    window_s = at.settings.failed_starts_window_s
    failed_s = (*(t for t in state.failed_starts_s if at.now_s - t < window_s), at.now_s)
    state = replace(state, failed_starts_s=failed_s)
    if len(failed_s) >= at.settings.max_failed_starts:
        why = f"{len(failed_s)} starts failed within {window_s:g} s, the last: {why}"
        return go_hard_open(state, HardReason.START_LOOP, at, why)
    return wait_for_restart(state, at, why, at.jittered(at.settings.restart_open_s))


def _unkillable(state: State, at: Moment) -> Result:
    if state.mode in FORCED or state.hard is HardReason.UNKILLABLE:
        return state, ()
    return go_hard_open(forget(state, at), HardReason.UNKILLABLE, at, "its process does not react to SIGKILL")


# --- what else may happen ---


def _hurry(state: State, at: Moment) -> Result:
    """The wait ends as soon as the last try is `restart_open_s` ago. It never becomes longer."""
    assert state.until_s is not None  # noqa: S101  # OPEN always ends
    soon_s = at.now_s if state.tried_s is None else max(at.now_s, state.tried_s + at.settings.restart_open_s)
    if soon_s >= state.until_s:
        return state, ()
    if soon_s > at.now_s:
        return replace(state, until_s=soon_s), (SetTimer(soon_s),)
    return try_again(state, at, "no other engine can answer")


def _looked(state: State, seen: Looked, at: Moment) -> Result:
    if seen.fingerprint != state.fingerprint:
        return give_back(replace(state, fingerprint=seen.fingerprint), at, "the machine or the engine has changed")
    if state.hard is HardReason.DEVICE_LOST and seen.is_device_there:
        return go_restarting(state, at, "the device is there again")
    return state, ()


def _force(state: State, mode: Mode | None, for_s: Seconds | None, at: Moment) -> Result:
    if mode is None:
        is_stuck = state.mode in FORCED or state.mode is Mode.HARD_OPEN
        return give_back(state, at, "a person gave it back") if is_stuck else (state, ())
    if mode not in FORCED:
        raise ConfigError(f"a circuit cannot be forced to {mode}", advice="force it open or closed, or give it back")
    gets = {
        Mode.FORCED_OPEN: "it gets no requests",
        Mode.FORCED_CLOSED: "it gets requests whatever happens",
        Mode.METRICS_ONLY: "it gets requests, and says when it would have opened",
    }[mode]
    until = "until a person gives it back" if for_s is None else f"for {for_s:.0f} s"
    return enter(state, at, mode, "a person said so", f"{gets} {until}", lasts_s=for_s)


def _stale(state: State) -> Result:
    return count(state, stale=state.counters.stale + 1), ()
