"""The breaker against an independent reference, and against mutants of itself that the comparison must catch."""

from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from reference_breaker import FORCED, OUTCOMES, PACES, SETTINGS, START_OUTCOMES, STEPS_S, Pair, mutant, walk

from kensho.base.errors import ConfigError
from kensho.base.structs import replace
from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Admit,
    Began,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Cancelled,
    Changed,
    Failed,
    Force,
    HardReason,
    HostFailed,
    HostReady,
    HostUnkillable,
    Hurry,
    LookAtMachine,
    Looked,
    Mode,
    Rejected,
    Resumed,
    RunCanary,
    SetTimer,
    State,
    Succeeded,
    Tick,
    WouldOpen,
)
from kensho.resilience.circuit_status import circuit_status
from kensho.resilience.failure_class import FailureClass as F
from kensho.resilience.transitions import TRANSITIONS

DRAWS = st.floats(0, 0.999)


class Compared(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    @rule(times=st.integers(1, 4), draw=st.sampled_from([0.0, 0.5, 0.999]))
    def admit(self, times: int, draw: float) -> None:
        for _ in range(times):
            self.pair.admit(draw)

    @precondition(lambda self: self.pair.permits)
    @rule(which=st.integers(0, 9), outcome=st.sampled_from(OUTCOMES), pace=st.sampled_from(PACES), draw=DRAWS)
    def settle(self, which: int, outcome: F | str, pace: float | None, draw: float) -> None:
        self.pair.settle(which, outcome, pace, draw)

    @rule(outcome=st.sampled_from(["ok", "ok", F.UNKNOWN]), times=st.integers(1, 15), pace=st.floats(1.0, 20.0))
    def work(self, outcome: F | str, times: int, pace: float) -> None:
        for _ in range(times):
            self.pair.admit()
            self.pair.settle(-1, outcome, max(0.01, self.pair.reference.usual) * pace, 0.5)

    @precondition(lambda self: self.pair.canaries)
    @rule(which=st.integers(-2, -1), outcome=st.sampled_from(OUTCOMES), draw=DRAWS)
    def settle_canary(self, which: int, outcome: F | str, draw: float) -> None:
        self.pair.settle_canary(which, outcome, draw)

    @precondition(lambda self: self.pair.hosts or self.pair.canaries)
    @rule(which=st.integers(-2, -1), draw=DRAWS)
    def begin(self, which: int, draw: float) -> None:
        self.pair.begin(which, draw)

    @precondition(lambda self: self.pair.hosts)
    @rule(which=st.integers(-2, -1), outcome=st.sampled_from(START_OUTCOMES), draw=DRAWS)
    def settle_host(self, which: int, outcome: F | str, draw: float) -> None:
        self.pair.settle_host(which, outcome, draw)

    @precondition(lambda self: self.pair.looks)
    @rule(which=st.integers(-2, -1), machine=st.sampled_from(["m0", "m1"]), is_there=st.booleans(), draw=DRAWS)
    def look(self, which: int, machine: str, is_there: bool, draw: float) -> None:
        self.pair.look(which, machine, is_there, draw)

    @rule(what=st.sampled_from(["stuck", "woke", "hurry", "hurry"]), draw=DRAWS)
    def happen(self, what: str, draw: float) -> None:
        getattr(self.pair, what)(draw)

    @rule(by_s=st.sampled_from(STEPS_S), draw=DRAWS)
    def advance(self, by_s: float | None, draw: float) -> None:
        self.pair.advance(by_s, draw)

    @rule(mode=st.sampled_from(FORCED), for_s=st.sampled_from([None, 3.0]), draw=DRAWS)
    def force(self, mode: Mode | None, for_s: float | None, draw: float) -> None:
        self.pair.force(mode, for_s, draw)

    @invariant()
    def open_time_is_bounded(self) -> None:
        if self.pair.state.mode is Mode.OPEN:
            assert self.pair.state.until_s is not None
            assert self.pair.state.until_s - self.pair.state.entered_s <= SETTINGS.open_cap_s


Compared.TestCase.settings = hypothesis_settings(max_examples=15, stateful_step_count=30, deadline=None)
TestComparedWithTheReference = Compared.TestCase


def test_no_difference_from_the_reference_on_a_long_walk() -> None:
    assert walk(breaker, steps=4_000, seed=1).steps >= 4_000


@pytest.mark.real
def test_the_walk_makes_exactly_the_changes_of_the_table() -> None:
    made = set[tuple[str, str]]()
    for seed in range(6):
        made |= walk(breaker, steps=20_000, seed=seed).changes
    assert made == {(one.before.value, one.after.value) for one in TRANSITIONS}


MUTANTS = {
    "users are admitted at half-open": (
        "    if state.mode in ADMITTING:\n        return state",
        "    if state.mode in ADMITTING | {Mode.HALF_OPEN}:\n        return state",
    ),
    "nobody is admitted when only metrics are wanted": (
        "    if state.mode in ADMITTING:\n        return state",
        "    if state.mode in {Mode.CLOSED, Mode.FORCED_CLOSED}:\n        return state",
    ),
    "a stale result counts": (
        "is_current = generation == state.generation and state.mode in ADMITTING",
        "is_current = state.mode in ADMITTING",
    ),
    "a stale canary counts": (
        "is_current = generation == state.generation and state.mode is Mode.HALF_OPEN",
        "is_current = state.mode is Mode.HALF_OPEN",
    ),
    "a stale start counts": (
        "is_current = generation == state.generation and state.mode is Mode.RESTARTING",
        "is_current = state.mode is Mode.RESTARTING",
    ),
    "a cancelled call is a success": (
        "return count(state, cancelled=counters.cancelled + 1), ()",
        "return replace(count(state, cancelled=counters.cancelled + 1), weight=0), ()",
    ),
    "a cancelled call is a failure": (
        "return count(state, cancelled=counters.cancelled + 1), ()",
        "return _failed(count(state, cancelled=counters.cancelled + 1), FailureClass.UNKNOWN, at)",
    ),
    "a cancelled canary keeps its permit": (
        "state = replace(state, generation=state.generation + 1, until_s=until_s, is_resting=True)",
        "state = replace(state, until_s=until_s, is_resting=True)",
    ),
    "a cancelled canary failed": ("run_canary(state, at) if state.is_resting else _canary", "_canary"),
    "a cancelled canary is followed by the next at once": ("state.tried_s + at.settings.canary_gap_s", "at.now_s"),
    "a cancelled canary passed": (
        "        return rest(state, at)",
        "        return enter(state, at, Mode.CLOSED, 'a', 'b')",
    ),
    "a second canary beside the first": (
        "    if state.until_s is None or at.now_s < state.until_s:",
        "    if state.mode is Mode.HALF_OPEN and at.now_s < (state.until_s or 0):\n"
        "        return run_canary(state, at)\n"
        "    if state.until_s is None or at.now_s < state.until_s:",
    ),
    "the canary has no deadline": ("at.settings.canary_timeout_s if is_canary", "1e9 if is_canary"),
    "the canary's time runs before it has the engine": (
        "until_s=None, is_resting=False, tried_s=at.now_s)",
        "until_s=at.now_s + 5.0, is_resting=False, tried_s=at.now_s)",
    ),
    "whoever begins twice has twice the time": (" and state.until_s is None\n", "\n"),
    "a start of another time begins": ("if is_awaited and generation == state.generation else", "if is_awaited else"),
    "one canary is enough": (
        "state.passes < at.settings.success_threshold",
        "state.passes + 1 < at.settings.success_threshold",
    ),
    "one failure too many": (
        "state.weight < at.settings.failure_threshold",
        "state.weight <= at.settings.failure_threshold",
    ),
    "late by one tick": ("at.now_s < state.until_s", "at.now_s <= state.until_s"),
    "failures need not be in a row": ("state = replace(state, weight=0)\n", "state = state\n"),
    "a crash waits for the threshold": (
        "if failure in RESTARTS_AT_ONCE:",
        "if failure is FailureClass.HANG:",
    ),
    "the hung host is not killed": ("kill = (KillHost(),) if must_kill else ()", "kill = ()"),
    "no doubling": ("2.0 ** min(times, MAX_DOUBLINGS)", "1.0"),
    "no cap": ("cap_s = self.settings.open_cap_s", "cap_s = 1e9"),
    "no jitter": ("2.0 * self.draw - 1.0", "0.0"),
    "trips are never forgotten": ("replace(state, trips=0, checks=0) if is_quiet", "replace(state) if is_quiet"),
    "trips are forgotten by a request only": ("go_half_open(forget(state, at), at", "go_half_open(state, at"),
    "the machine is looked at as often as before": (
        "at.doubled(at.settings.check_s, state.checks)\n",
        "at.jittered(at.settings.check_s)\n",
    ),
    "a want of descriptors is a failed start": (
        "    if event.failure in NO_ROOM:",
        "    if event.failure is FailureClass.OUT_OF_MEMORY:",
    ),
    "a want of the machine is tried at full speed": (
        "at.doubled(at.settings.restart_open_s, state.shortages)",
        "at.jittered(at.settings.restart_open_s)",
    ),
    "a want of the machine kills the host": (
        "return _no_room(state, at, why, must_restart=False)",
        "return _no_room(state, at, why, must_restart=True)",
    ),
    "start loops go on for ever": ("len(failed_s) >= at.settings.max_failed_starts", "len(failed_s) > 10_000"),
    "old failed starts count": ("if at.now_s - t < window_s", "if True"),
    "old crashes count": ("if at.now_s - t < settings.failed_starts_window_s", "if True"),
    "crash loops go on at full speed": ("if too_many <= 0:", "if True:"),
    "a killed host gets a canary": ("must_restart=failure is not FailureClass.UNKNOWN", "must_restart=False"),
    "a forced circuit opens": (
        "return (state, ()) if state.mode is Mode.FORCED_CLOSED else _failed",
        "return (state, ()) if state.mode is Mode.FORCED_OPEN else _failed",
    ),
    "metrics only, and yet it opens": (
        "    if state.mode is Mode.METRICS_ONLY:\n        return _would_open(state, why)\n    return go_open",
        "    return go_open",
    ),
    "a person's word is forgotten by the start loop": (
        "replace(state, failed_starts_s=(), restarts_s=(), trips=0,",
        "replace(state, restarts_s=(), trips=0,",
    ),
    "a word for a time is for ever": (
        '{gets} {until}", lasts_s=for_s)',
        '{gets} {until}", lasts_s=None)',
    ),
    "wrong numbers for ever": ("if state.mismatches >= at.settings.max_mismatches:", "if False:"),
    "mismatches are not forgotten": ("ramps=True, mismatches=0", "ramps=True"),
    "mismatches need not be in a row": ("state.mismatches + 1 if is_wrong else 0", "state.mismatches + is_wrong"),
    "all traffic at once": ("replace(state, ramps=True,", "replace(state,"),
    "the second want of memory is as good as the first": (
        "at.now_s - before_s <= at.settings.oom_window_s",
        "at.now_s - before_s <= 0",
    ),
    "a lost device is respawned": (
        "    if hard is not None:\n        return go_hard_open(state, hard, at, why)",
        "    if hard is not None:\n        return _crashed(state, at, why)",
    ),
    "the machine is never looked at": (
        "(SetTimer(until_s), LookAtMachine(state.generation))",
        "(SetTimer(until_s),)",
    ),
    "the same machine is good enough": ("if seen.fingerprint != state.fingerprint:", "if True:"),
    "any hard reason ends when a device is there": (
        "if state.hard is HardReason.DEVICE_LOST and seen.is_device_there:",
        "if seen.is_device_there:",
    ),
    "hurry makes a busy loop": ("max(at.now_s, state.tried_s + at.settings.restart_open_s)", "at.now_s"),
    "rates of too few calls": ("if calls < least:", "if calls < least - 1:"),
    "the window never forgets": ("passed = min(BUCKETS, bucket - rates.bucket)", "passed = 0"),
    "slow calls are what is usual": (
        "    if not is_slow(",
        "    if True or not is_slow(",
    ),
    "sleep does not matter": (
        "is_trusted = state.mode is Mode.CLOSED",
        "is_trusted = state.mode is Mode.FORCED_CLOSED",
    ),
}


@pytest.mark.real
@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_the_comparison_catches_the_mutant(old: str, new: str) -> None:
    changed = mutant(old, new)
    with pytest.raises((AssertionError, KeyError, TypeError)):
        for seed in range(10):
            walk(changed, steps=4_000, seed=seed)


# --- rules by name ---


def run(state: State, *events: Any, now: float = 1000.0) -> tuple[State, list[Any]]:
    effects: list[Any] = []
    for event in events:
        state, more = breaker.step(state, event, now, SETTINGS)
        effects += more
    return state, effects


def half_open() -> tuple[State, RunCanary]:
    state, _ = run(breaker.closed(1000.0), Admit(), Failed(1, F.CRASH))
    state, effects = run(state, HostReady(state.generation))
    (canary,) = [effect for effect in effects if isinstance(effect, RunCanary)]
    return state, canary


def test_fifty_callers_at_half_open_meet_one_canary_and_no_engine() -> None:
    state, _ = half_open()
    state, effects = run(state, *[Admit()] * 50)
    assert [type(effect) for effect in effects] == [Rejected] * 50
    assert state.counters.canaries == 1
    assert state.counters.rejected == 50


def test_a_success_from_before_the_trip_does_not_close_the_circuit() -> None:
    state, _ = run(breaker.closed(1000.0), Admit(), Admit(), Failed(1, F.TIMEOUT))
    assert state.mode is Mode.OPEN
    state, _ = run(state, Succeeded(1))
    assert state.mode is Mode.OPEN
    assert state.counters.stale == 1
    assert state.counters.successes == 0


def test_two_failures_a_cancel_and_a_failure_open_and_cancels_alone_never_do() -> None:
    one = Failed(1, F.UNKNOWN)
    assert run(breaker.closed(1000.0), one, one, Cancelled(1), one)[0].mode is Mode.OPEN
    assert run(breaker.closed(1000.0), *[Cancelled(1)] * 50)[0].mode is Mode.CLOSED


def test_a_cancelled_canary_is_no_verdict_and_the_next_one_is_alone() -> None:
    state, canary = half_open()
    state, effects = run(state, CanaryCancelled(canary.generation))
    assert state.mode is Mode.HALF_OPEN
    assert effects == [SetTimer(1001.0)]
    state, effects = run(state, Tick(), Tick(), CanaryPassed(canary.generation), now=1000.9)
    assert effects == []
    state, effects = run(state, Tick(), Tick(), Tick(), now=1001.0)
    assert sum(isinstance(effect, RunCanary) for effect in effects) == 1
    state, _ = run(state, CanaryPassed(canary.generation))
    assert state.passes == 0


def test_open_doubles_to_its_cap_and_starts_anew_after_quiet_time() -> None:
    state, now, waits = breaker.closed(0.0), 0.0, []
    state, _ = breaker.step(state, Failed(1, F.TIMEOUT), now, SETTINGS)
    for _ in range(6):
        assert state.until_s is not None
        waits.append(state.until_s - now)
        now = state.until_s
        state, _ = breaker.step(state, Tick(), now, SETTINGS)
        state, _ = breaker.step(state, CanaryFailed(state.generation, F.UNKNOWN), now, SETTINGS)
    assert waits == pytest.approx([60.0, 120.0, 240.0, 480.0, 900.0, 900.0])


def test_ten_minutes_without_a_trip_begin_the_doubling_anew() -> None:
    before = replace(breaker.closed(0.0), trips=2)
    waits = [(run(before, Failed(1, F.TIMEOUT), now=now)[0].until_s or 0.0) - now for now in (599.0, 600.0)]
    assert waits == pytest.approx([240.0, 60.0])


def test_a_start_that_failed_ten_minutes_ago_is_forgotten() -> None:
    state, _ = run(breaker.closed(0.0), Failed(1, F.CRASH), now=590.0)
    state = replace(state, failed_starts_s=(0.0, 1.0))
    assert run(state, HostFailed(state.generation), now=599.9)[0].mode is Mode.HARD_OPEN
    assert run(state, HostFailed(state.generation), now=600.0)[0].mode is Mode.OPEN


def test_half_of_ten_calls_that_fail_open_although_never_three_in_a_row() -> None:
    pairs = [Succeeded(1), Failed(1, F.UNKNOWN)]
    state, _ = run(breaker.closed(1000.0), *pairs * 4, Succeeded(1))
    assert state.mode is Mode.CLOSED
    state, effects = run(state, Failed(1, F.UNKNOWN))
    assert state.mode is Mode.OPEN
    assert effects[0].reason == "5 of the last 10 calls failed"


def test_half_of_ten_calls_that_take_eight_times_as_long_as_usual_open() -> None:
    state, _ = run(breaker.closed(1000.0), *[Succeeded(1, 0.01)] * 20)
    state, _ = run(state, *[Succeeded(1, 0.08)] * 9, now=1100.0)
    assert (state.mode, state.counters.slow) == (Mode.CLOSED, 9)
    state, effects = run(state, Succeeded(1, 0.08), now=1100.0)
    assert state.mode is Mode.OPEN
    assert effects[0].reason == "10 of the last 10 calls were slow"
    assert state.baseline_s == pytest.approx(0.01)


def test_a_call_that_takes_exactly_what_is_usual_is_none_above_it() -> None:
    state, _ = run(breaker.closed(1000.0), *[Succeeded(1, 0.01)] * 20)
    assert run(state, Succeeded(1, 0.01))[0].baseline_s == pytest.approx(0.009975)
    assert run(state, Succeeded(1, 0.0101))[0].baseline_s == pytest.approx(0.010475)


def test_the_baseline_is_about_the_p95_of_usual_calls() -> None:
    import random

    rng, state = random.Random(4), breaker.closed(1000.0)
    paces = [rng.lognormvariate(-4.6, 0.4) for _ in range(2_000)]
    for pace in paces:
        state, _ = breaker.step(state, Succeeded(1, pace), 1000.0, replace(SETTINGS, slow_factor=50.0))
    assert state.baseline_s == pytest.approx(sorted(paces)[1_900], rel=0.3)


def test_a_second_want_of_memory_within_a_minute_restarts_the_host() -> None:
    first = Failed(1, F.OUT_OF_MEMORY)
    state, _ = run(breaker.closed(1000.0), first, Succeeded(1))
    assert run(state, first, now=1060.0)[0].mode is Mode.RESTARTING
    assert run(state, first, now=1060.5)[0].mode is Mode.CLOSED


def test_crashes_of_requests_are_followed_by_a_start_at_once_three_times_and_then_by_longer_and_longer_waits() -> None:
    state, now, waits = breaker.closed(0.0), 0.0, []
    for _ in range(6):
        state, _ = breaker.step(state, Failed(state.generation, F.CRASH), now, SETTINGS)
        waits.append(0.0 if state.mode is Mode.RESTARTING else (state.until_s or 0.0) - now)
        now += waits[-1]
        state, _ = breaker.step(state, Tick(), now, SETTINGS)
        for event in (HostReady, CanaryPassed, CanaryPassed):
            state, _ = breaker.step(state, event(state.generation), now, SETTINGS)
        assert state.mode is Mode.CLOSED
    assert waits == pytest.approx([0.0, 0.0, 0.0, 5.0, 10.0, 20.0])


@pytest.mark.parametrize(
    ("failure", "hard"),
    [(F.DEVICE_LOST, HardReason.DEVICE_LOST), (F.DRIVER_MISMATCH, HardReason.DRIVER_MISMATCH)],
)
def test_what_no_new_process_mends_is_not_respawned(failure: F, hard: HardReason) -> None:
    state, effects = run(breaker.closed(1000.0), Failed(1, failure))
    assert (state.mode, state.hard) == (Mode.HARD_OPEN, hard)
    assert not any("StartHost" in type(effect).__name__ for effect in effects)


def test_hard_open_looks_at_the_machine_less_and_less_often_and_leaves_when_it_has_changed() -> None:
    state, _ = run(breaker.closed(0.0, "boot 1"), Failed(1, F.DRIVER_MISMATCH), now=0.0)
    now, waits = 0.0, []
    for _ in range(6):
        assert state.until_s is not None
        waits.append(state.until_s - now)
        now = state.until_s
        state, effects = breaker.step(state, Tick(), now, SETTINGS)
        assert isinstance(effects[-1], LookAtMachine)
        state, _ = breaker.step(state, Looked(state.generation, "boot 1", is_device_there=True), now, SETTINGS)
    assert waits == pytest.approx([60.0, 120.0, 240.0, 480.0, 900.0, 900.0])
    state, effects = breaker.step(state, Looked(state.generation, "boot 2", is_device_there=False), now, SETTINGS)
    assert (state.mode, state.fingerprint) == (Mode.RESTARTING, "boot 2")


def test_a_lost_device_that_is_there_again_is_tried() -> None:
    state, _ = run(breaker.closed(0.0, "boot 1"), Failed(1, F.DEVICE_LOST))
    seen = Looked(state.generation, "boot 1", is_device_there=False)
    assert run(state, seen)[0].mode is Mode.HARD_OPEN
    assert run(state, replace(seen, is_device_there=True))[0].mode is Mode.RESTARTING


def test_after_the_machine_slept_a_canary_comes_first() -> None:
    state, effects = run(breaker.closed(1000.0), Resumed(), Admit())
    assert state.mode is Mode.HALF_OPEN
    assert [type(effect) for effect in effects] == [Changed, RunCanary, Rejected]


def test_when_nobody_else_can_answer_the_wait_shrinks_but_tries_stay_apart() -> None:
    state, _ = run(breaker.closed(1000.0), Failed(1, F.TIMEOUT))
    state, effects = run(state, Hurry())
    assert state.mode is Mode.HALF_OPEN
    state, _ = run(state, CanaryFailed(state.generation, F.UNKNOWN), now=1001.0)
    state, effects = run(state, Hurry(), Hurry(), now=1001.0)
    assert (state.mode, state.until_s) == (Mode.OPEN, 1005.0)
    assert effects == [SetTimer(1005.0)]


def test_metrics_only_says_what_it_would_have_done_and_goes_on() -> None:
    state, _ = run(breaker.closed(1000.0), Force(Mode.METRICS_ONLY))
    failed = Failed(state.generation, F.TIMEOUT)
    state, effects = run(state, failed)
    assert effects == [WouldOpen("too many failures in a row, the last: timeout")]
    assert run(state, Failed(state.generation, F.CRASH))[1] == [WouldOpen("a request failed: crash")]
    hungry = Failed(state.generation, F.OUT_OF_MEMORY)
    assert run(state, hungry, hungry)[1] == [WouldOpen("no memory, twice within 60 s")]
    assert run(state, Admit())[0].mode is Mode.METRICS_ONLY


def test_a_circuit_is_not_forced_to_a_mode_that_nobody_can_hold() -> None:
    with pytest.raises(ConfigError, match="HALF_OPEN") as caught:
        run(breaker.closed(0.0), Force(Mode.HALF_OPEN))
    assert caught.value.advice == "force it open or closed, or give it back"


def test_a_third_of_the_way_back_a_tenth_of_the_requests_prefers_the_engine() -> None:
    state, _ = half_open()
    state, _ = run(state, CanaryPassed(state.generation))
    state, _ = run(state, CanaryPassed(state.generation))
    shares = [breaker.share(state, 1000.0 + age, SETTINGS) for age in (0.0, 4.99, 5.0, 9.99, 10.0)]
    assert shares == [0.1, 0.1, 0.5, 0.5, 1.0]
    assert breaker.share(breaker.closed(1000.0), 1000.0, SETTINGS) == 1.0


def told(*events: Any, state: State | None = None) -> tuple[str, str]:
    """The last change that these events make, in words. A function among them gets the state."""
    state = state or breaker.closed(1000.0)
    changes: list[Changed] = []
    for event in events:
        state, effects = run(state, event(state) if callable(event) else event)
        changes += [effect for effect in effects if isinstance(effect, Changed)]
    return changes[-1].reason, changes[-1].next_step


def failed(kind: F) -> Any:
    return lambda state: Failed(state.generation, kind)


def ready(state: State) -> HostReady:
    return HostReady(state.generation)


def passed(state: State) -> CanaryPassed:
    return CanaryPassed(state.generation)


def start_failed(state: State) -> HostFailed:
    return HostFailed(state.generation, F.UNKNOWN)


CRASHED = (failed(F.CRASH),)
PERSON = "a person said so"
GIVE_BACK = Force(None)

SAID = {
    "failures": (
        (failed(F.UNKNOWN), failed(F.UNKNOWN), failed(F.UNKNOWN)),
        ("too many failures in a row, the last: unknown", "a canary in 60.0 s"),
    ),
    "crash": (CRASHED, ("a request failed: crash", "starting it, then a canary")),
    "fourth crash": (
        (failed(F.CRASH), ready, passed, passed) * 3 + CRASHED,
        ("a request failed: crash; it is the 4th within 600 s", "a new start in 5.0 s"),
    ),
    "memory": (
        (failed(F.OUT_OF_MEMORY), failed(F.OUT_OF_MEMORY)),
        ("no memory, twice within 60 s", "starting it, then a canary"),
    ),
    "up": ((*CRASHED, ready), ("the host is up", "canaries that must pass: 2")),
    "back": ((*CRASHED, ready, passed, passed), ("canaries passed: 2", "requests go to it again, by and by")),
    "no start": ((*CRASHED, start_failed), ("the start failed: unknown", "a new start in 5.0 s")),
    "bad canary": (
        (*CRASHED, ready, lambda state: CanaryFailed(state.generation, F.UNKNOWN)),
        ("the canary failed: unknown", "a canary in 60.0 s"),
    ),
    "unkillable": (
        (HostUnkillable(),),
        (
            "unkillable: its process does not react to SIGKILL",
            "a look at the machine in 60 s; reboot: a process of it does not react to SIGKILL",
        ),
    ),
    "lost at start": (
        (*CRASHED, lambda state: HostFailed(state.generation, F.DEVICE_LOST)),
        (
            "device_lost: the start failed: device_lost",
            "a look at the machine in 60 s; reset or reseat the device, or reboot",
        ),
    ),
    "lost": (
        (failed(F.DEVICE_LOST),),
        (
            "device_lost: a request failed: device_lost",
            "a look at the machine in 60 s; reset or reseat the device, or reboot",
        ),
    ),
    "lost at the canary": (
        (*CRASHED, ready, lambda state: CanaryFailed(state.generation, F.DRIVER_MISMATCH)),
        (
            "driver_mismatch: the canary failed: driver_mismatch",
            "a look at the machine in 60 s; reboot: the driver was updated and its old part still runs",
        ),
    ),
    "slept": ((Resumed(),), ("the machine slept", "canaries that must pass: 2")),
    "hurry": ((failed(F.TIMEOUT), Hurry()), ("no other engine can answer", "canaries that must pass: 2")),
    "forced open": ((Force(Mode.FORCED_OPEN),), (PERSON, "it gets no requests until a person gives it back")),
    "forced closed": (
        (Force(Mode.FORCED_CLOSED, 90.0),),
        (PERSON, "it gets requests whatever happens for 90 s"),
    ),
    "metrics": (
        (Force(Mode.METRICS_ONLY),),
        (PERSON, "it gets requests, and says when it would have opened until a person gives it back"),
    ),
    "given back": (
        (Force(Mode.FORCED_OPEN), GIVE_BACK),
        ("a person gave it back", "starting it, then a canary"),
    ),
    "changed": (
        (HostUnkillable(), lambda state: Looked(state.generation, "new", is_device_there=False)),
        ("the machine or the engine has changed", "starting it, then a canary"),
    ),
    "device back": (
        (failed(F.DEVICE_LOST), lambda state: Looked(state.generation, "", is_device_there=True)),
        ("the device is there again", "starting it, then a canary"),
    ),
}


@pytest.mark.parametrize(("events", "words"), SAID.values(), ids=SAID)
def test_each_change_is_told_in_words_with_what_happens_next(events: Any, words: tuple[str, str]) -> None:
    assert told(*events) == words


def test_what_time_does_is_told_in_words() -> None:
    state, _ = run(breaker.closed(1000.0), Failed(1, F.TIMEOUT))
    assert run(state, Tick(), now=1060.0)[0].reason == "the wait is over"
    assert breaker.closed(1000.0).reason == "no failure seen"
    state, _ = run(breaker.closed(1000.0), Failed(1, F.CRASH))
    state, _ = run(state, Began(state.generation))
    assert run(state, Tick(), now=1120.0)[0].reason == "no start within 120 s"
    state, _ = half_open()
    state, _ = run(state, Began(state.generation))
    assert run(state, Tick(), now=1005.0)[0].reason == "the canary failed: hang"
    state, _ = run(breaker.closed(1000.0), Force(Mode.FORCED_OPEN, 3.0))
    assert run(state, Tick(), now=1003.0)[0].reason == "the time of a person's word is over"


def test_the_last_of_three_failed_starts_and_mismatches_says_how_many_there_were() -> None:
    state, now = run(breaker.closed(1000.0), Failed(1, F.CRASH))[0], 1000.0
    for _ in range(3):
        state, _ = breaker.step(state, HostFailed(state.generation), now, SETTINGS)
        reason, now = state.reason, now + 10.0
        state, _ = breaker.step(state, Tick(), now, SETTINGS)
    assert reason == "start_loop: 3 starts failed within 600 s, the last: the start failed: crash"
    state, now = half_open()[0], 1000.0
    for _ in range(3):
        state, _ = breaker.step(state, CanaryFailed(state.generation, F.MISMATCH), now, SETTINGS)
        reason, now = state.reason, now + 900.0
        state, _ = breaker.step(state, Tick(), now, SETTINGS)
        state, _ = breaker.step(state, HostReady(state.generation), now, SETTINGS)
    assert reason == "output_mismatch: the canary failed: mismatch, in 3 processes in a row"


def test_the_status_has_the_figures_of_a_status_page() -> None:
    state, _ = run(breaker.closed(990.0), Admit(), Succeeded(1, 0.02), Admit(), Failed(1, F.TIMEOUT), Admit())
    seen = circuit_status(state, 1010.0)
    assert (seen.mode, seen.admits) == (Mode.OPEN, False)
    assert seen.leaves_in_s == pytest.approx(50.0)
    assert (seen.last_success_ago_s, seen.last_failure_ago_s, seen.in_mode_s) == (10.0, 10.0, 10.0)
    fields = seen.as_fields()
    assert fields["state"] == "OPEN"
    assert fields["reason"] == "too many failures in a row, the last: timeout"
    assert (fields["calls"], fields["rejected"], fields["successes"], fields["failures"]) == (2, 1, 1, 1)
    assert (fields["fallback_for_s"], fields["opened"], fields["trips"], fields["baseline_ms"]) == (50.0, 1, 1, 20.0)
