"""How a circuit goes from one mode to another, and what has to be done then. Pure; `breaker.py` says when.

Every move is told by a `Changed` with its reason and what happens next, and begins a new generation.
"""

from kensho.base.clock import Seconds
from kensho.base.structs import Struct, replace
from kensho.resilience.breaker_rates import Rates
from kensho.resilience.circuit import (
    ADMITTING,
    ADVICE,
    BreakerSettings,
    Changed,
    HardReason,
    KillHost,
    LookAtMachine,
    Mode,
    Result,
    RunCanary,
    SetTimer,
    StartHost,
    State,
)

MAX_DOUBLINGS = 30
"""Any cap is reached long before."""


class Moment(Struct):
    """Now, the settings, and one draw for jitter."""

    now_s: Seconds
    settings: BreakerSettings
    draw: float

    def jittered(self, duration_s: Seconds) -> Seconds:
        return duration_s * (1.0 + self.settings.jitter * (2.0 * self.draw - 1.0))

    def doubled(self, first_s: Seconds, times: int) -> Seconds:
        """`first_s` x 2^times with jitter, at most the cap."""
        cap_s = self.settings.open_cap_s
        return min(cap_s, self.jittered(min(cap_s, first_s * 2.0 ** min(times, MAX_DOUBLINGS))))

    def bucket(self) -> int:
        return int(self.now_s // self.settings.bucket_s)


def go_open(state: State, at: Moment, why: str, must_restart: bool = False) -> Result:
    wait_s = at.doubled(at.settings.open_s, state.trips)
    state = replace(state, trips=state.trips + 1)
    if must_restart:
        return wait_for_restart(state, at, why, wait_s)
    return wait_for_canary(state, at, why, wait_s)


def wait_for_canary(state: State, at: Moment, why: str, wait_s: Seconds) -> Result:
    return enter(state, at, Mode.OPEN, why, f"a canary in {wait_s:.1f} s", lasts_s=wait_s)


def wait_for_restart(state: State, at: Moment, why: str, wait_s: Seconds) -> Result:
    state, effects = enter(state, at, Mode.OPEN, why, f"a new start in {wait_s:.1f} s", lasts_s=wait_s)
    return replace(state, must_restart=True), (*effects, KillHost())


def try_again(state: State, at: Moment, why: str) -> Result:
    return go_restarting(state, at, why) if state.must_restart else go_half_open(state, at, why)


def go_restarting(state: State, at: Moment, why: str, must_kill: bool = False) -> Result:
    state, effects = enter(state, at, Mode.RESTARTING, why, "starting it, then a canary")
    state = count(replace(state, tried_s=at.now_s), restarts=state.counters.restarts + 1)
    kill = (KillHost(),) if must_kill else ()
    return state, (*effects, *kill, StartHost(state.generation))


def go_half_open(state: State, at: Moment, why: str) -> Result:
    next_step = f"canaries that must pass: {at.settings.success_threshold}"
    state, entered = enter(state, at, Mode.HALF_OPEN, why, next_step)
    state, effects = run_canary(state, at)
    return state, entered + effects


def run_canary(state: State, at: Moment) -> Result:
    state = replace(state, generation=state.generation + 1, until_s=None, is_resting=False, tried_s=at.now_s)
    state = count(state, canaries=state.counters.canaries + 1)
    return state, (RunCanary(state.generation),)


def begin_time(state: State, at: Moment) -> Result:
    """The canary or the start has the engine for itself."""
    is_canary = state.mode is Mode.HALF_OPEN
    until_s = at.now_s + (at.settings.canary_timeout_s if is_canary else at.settings.start_timeout_s)
    return replace(state, until_s=until_s, tried_s=at.now_s), (SetTimer(until_s),)


def rest(state: State, at: Moment) -> Result:
    """No verdict came of the canary. The next one begins soon, and not at once: whatever cancelled it may go on."""
    assert state.tried_s is not None  # noqa: S101  # a canary began
    until_s = max(at.now_s, state.tried_s + at.settings.canary_gap_s)
    state = replace(state, generation=state.generation + 1, until_s=until_s, is_resting=True)
    return state, (SetTimer(until_s),)


def go_hard_open(state: State, hard: HardReason, at: Moment, why: str) -> Result:
    wait_s = at.doubled(at.settings.check_s, state.checks)
    next_step = f"a look at the machine in {wait_s:.0f} s; {ADVICE[hard]}"
    state, effects = enter(state, at, Mode.HARD_OPEN, f"{hard}: {why}", next_step, lasts_s=wait_s)
    kill = () if hard is HardReason.UNKILLABLE else (KillHost(),)
    return replace(state, hard=hard), (*effects, *kill)


def look_again(state: State, at: Moment) -> Result:
    until_s = at.now_s + at.doubled(at.settings.check_s, state.checks + 1)
    state = replace(state, checks=state.checks + 1, until_s=until_s)
    return state, (SetTimer(until_s), LookAtMachine(state.generation))  # what it sees may set another timer


def give_back(state: State, at: Moment, why: str) -> Result:
    state = replace(state, failed_starts_s=(), restarts_s=(), trips=0, checks=0, mismatches=0, shortages=0)
    return go_restarting(state, at, why)


def forget(state: State, at: Moment) -> State:
    """Ten quiet minutes CLOSED: what was doubled before begins anew."""
    is_quiet = state.mode is Mode.CLOSED and at.now_s - state.entered_s >= at.settings.forget_trips_s
    return replace(state, trips=0, checks=0) if is_quiet else state


def enter(
    state: State, at: Moment, mode: Mode, reason: str, next_step: str, *, lasts_s: Seconds | None = None
) -> Result:
    until_s = None if lasts_s is None else at.now_s + lasts_s
    closes = state.mode in ADMITTING and mode not in ADMITTING
    after = replace(
        count(state, opened=state.counters.opened + closes),
        mode=mode,
        generation=state.generation + 1,
        entered_s=at.now_s,
        reason=reason,
        until_s=until_s,
        hard=None,
        weight=0,
        rates=Rates(at.bucket()),
        last_oom_s=None,
        ramps=False,
        passes=0,
        must_restart=False,
    )
    changed = Changed(state.mode, mode, reason, next_step)
    return after, (changed,) if until_s is None else (changed, SetTimer(until_s))


def count(state: State, **changes: float) -> State:
    return replace(state, counters=replace(state.counters, **changes))
