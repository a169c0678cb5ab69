"""The rules of the breaker, by name."""

import pytest
from breaker_lives import half_open, run
from breaker_walk import SETTINGS

from kensho.base.errors import ConfigError
from kensho.base.structs import replace
from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Admit,
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
    Hurry,
    LookAtMachine,
    Looked,
    Mode,
    Rejected,
    Resumed,
    RunCanary,
    SetTimer,
    Succeeded,
    Tick,
    WouldOpen,
)
from kensho.resilience.failure_class import FailureClass as F


def test_fifty_callers_at_half_open_meet_one_canary_and_no_engine() -> None:
    state, _ = half_open()
    state, effects = run(state, *[Admit()] * 50)
    assert [type(effect) for effect in effects] == [Rejected] * 50
    assert state.counters.canaries == 1
    assert state.counters.rejected == 50


def test_a_success_from_before_the_trip_does_not_close_the_circuit() -> None:
    state, _ = run(breaker.closed(1000.0), Admit(), Admit(), Failed(1, F.MISMATCH))
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
    state, _ = breaker.step(state, Failed(1, F.MISMATCH), now, SETTINGS)
    for _ in range(6):
        assert state.until_s is not None
        waits.append(state.until_s - now)
        now = state.until_s
        state, _ = breaker.step(state, Tick(), now, SETTINGS)
        state, _ = breaker.step(state, CanaryFailed(state.generation, F.UNKNOWN), now, SETTINGS)
    assert waits == pytest.approx([60.0, 120.0, 240.0, 480.0, 900.0, 900.0])


def test_ten_minutes_without_a_trip_begin_the_doubling_anew() -> None:
    before = replace(breaker.closed(0.0), trips=2)
    waits = [(run(before, Failed(1, F.MISMATCH), now=now)[0].until_s or 0.0) - now for now in (599.0, 600.0)]
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
    state, _ = run(breaker.closed(1000.0), Failed(1, F.MISMATCH))
    state, effects = run(state, Hurry())
    assert state.mode is Mode.HALF_OPEN
    state, _ = run(state, CanaryFailed(state.generation, F.UNKNOWN), now=1001.0)
    state, effects = run(state, Hurry(), Hurry(), now=1001.0)
    assert (state.mode, state.until_s) == (Mode.OPEN, 1005.0)
    assert effects == [SetTimer(1005.0)]


def test_metrics_only_says_what_it_would_have_done_and_goes_on() -> None:
    state, _ = run(breaker.closed(1000.0), Force(Mode.METRICS_ONLY))
    failed = Failed(state.generation, F.MISMATCH)
    state, effects = run(state, failed)
    assert effects == [WouldOpen("too many failures in a row, the last: mismatch")]
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
