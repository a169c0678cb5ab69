"""The gate's quick paths against `step` alone, and from many threads at once."""

import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kensho.base.structs import replace
from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Admit,
    Admitted,
    Began,
    BreakerSettings,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Cancelled,
    Changed,
    Effect,
    Failed,
    Force,
    HostReady,
    Hurry,
    Mode,
    RunCanary,
    StartHost,
    Succeeded,
    Tick,
)
from kensho.resilience.failure_class import FailureClass as F
from kensho.resilience.gate import Gate

MOMENTS_S = [0.0, 0.0, 1e-6, 0.01, 0.9, 2.0, 3.0, 61.0]


def twins(settings: BreakerSettings, rng: random.Random) -> Iterator[tuple[Any, Any]]:
    """Endless (what the gate made of it, what `step` made of it) for the same random inputs."""
    now, carried = [1000.0], list[tuple[Effect, ...]]()
    gate = Gate(breaker.closed(now[0]), settings, now_s=lambda: now[0], rng=lambda: 0.25, carry_out=carried.append)
    state = breaker.closed(now[0])
    permits = [0]
    while True:
        now[0] += rng.choice(MOMENTS_S)
        pace = rng.choice([None, 0.01, 0.02, state.baseline_s * settings.slow_factor, 0.5])
        generation = rng.choice([*permits, state.generation, state.generation, state.generation])
        quick: list[tuple[Callable[[], Any], Any]] = [
            (gate.admit, Admit()),
            (lambda g=generation, p=pace: gate.succeeded(g, p), Succeeded(generation, pace)),
        ]
        slow: list[tuple[Callable[[], Any], Any]] = [
            (lambda g=generation: gate.failed(g, F.UNKNOWN), Failed(generation, F.UNKNOWN)),
            (lambda g=generation: gate.cancelled(g), Cancelled(generation)),
            *(
                (lambda e=event: gate.send(e), event)
                for event in (
                    Tick(),
                    Began(state.generation),
                    CanaryPassed(state.generation),
                    CanaryFailed(state.generation, F.UNKNOWN),
                    CanaryCancelled(state.generation),
                    Hurry(),
                    Force(rng.choice([Mode.FORCED_CLOSED, Mode.METRICS_ONLY, None, None]), rng.choice([None, 5.0])),
                    HostReady(state.generation),
                )
            ),
        ]
        act, event = rng.choice(quick) if rng.random() < 0.9 else rng.choice(slow)
        state, effects = breaker.step(state, event, now[0], settings, 0.25)
        carried.clear()
        answer = act()
        if carried:
            yield carried, [effects]
        if isinstance(event, Admit):
            permit = next((effect.generation for effect in effects if isinstance(effect, Admitted)), None)
            permits = [*permits[-3:], permit or 0]
            yield answer, permit
        if rng.random() < 0.1:
            yield gate.state, state


@pytest.mark.parametrize("window_s", [30.0, 0.7, 11.0])
def test_the_quick_paths_reach_the_state_that_steps_alone_would_have_reached(window_s: float) -> None:
    pairs = twins(BreakerSettings(window_s=window_s), random.Random(window_s))
    for _ in range(1_000):
        got, wanted = next(pairs)
        assert got == wanted


@pytest.mark.real
def test_no_difference_in_a_hundred_thousand_calls() -> None:
    for seed in range(2):
        pairs = twins(BreakerSettings(), random.Random(seed))
        for _ in range(50_000):
            got, wanted = next(pairs)
            assert got == wanted


def test_a_healthy_engines_calls_take_no_step() -> None:
    steps: list[tuple[Effect, ...]] = []
    state = replace(breaker.closed(1000.0), baseline_s=0.01, baseline_calls=50)
    gate = Gate(state, BreakerSettings(), now_s=lambda: 1000.0, rng=lambda: 0.5, carry_out=steps.append)
    for _ in range(100):
        permit = gate.admit()
        assert permit == 1
        gate.succeeded(permit, 0.01)
        gate.succeeded(permit)
    assert steps == []
    assert gate.state.counters.successes == 200


def test_successes_are_counted_in_the_bucket_in_which_they_came() -> None:
    now = [999.5]
    gate = Gate(breaker.closed(0.0), BreakerSettings(), now_s=lambda: now[0], rng=lambda: 0.5, carry_out=lambda _: None)
    for now[0] in (999.5, 1000.5, 1002.5, 1003.0, 1005.5):
        gate.succeeded(1)
    rates = gate.state.rates
    assert (rates.bucket, rates.calls) == (335, (0, 0, 0, 0, 0, 0, 0, 2, 2, 1))


def test_a_refusal_takes_no_step_while_nothing_is_due() -> None:
    steps: list[tuple[Effect, ...]] = []
    now = [1000.0]
    gate = Gate(
        breaker.closed(1000.0), BreakerSettings(), now_s=lambda: now[0], rng=lambda: 0.5, carry_out=steps.append
    )
    gate.failed(1, F.MISMATCH)
    steps.clear()
    now[0] = 1059.9
    assert [gate.admit() for _ in range(50)] == [None] * 50
    assert (steps, gate.state.counters.rejected) == ([], 50)
    now[0] = 1060.0
    assert gate.admit() is None
    assert [type(effect) for effect in steps[0]][:2] == [Changed, RunCanary]
    gate.send(Force(Mode.FORCED_OPEN))
    steps.clear()
    now[0] = 1e9
    assert gate.admit() is None
    assert (steps, gate.state.counters.rejected) == ([], 52)
    assert not gate.admits


class Crowd:
    """64 threads that ask for permits and answer whatever the gate wants done, canaries included, at once."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.rng = random.Random(5)
        self.now = 1000.0
        self.lock = threading.Lock()
        self.canaries_in_flight = self.most_canaries = 0
        self.outcomes: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        settings = BreakerSettings(open_s=1e-4, open_cap_s=1e-4)
        self.gate = Gate(breaker.closed(0.0), settings, now_s=self.tick, rng=lambda: 0.5, carry_out=self.carry_out)

    def tick(self) -> float:
        self.now += 1e-5
        return self.now

    def carry_out(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if isinstance(effect, StartHost):
                self.gate.send(HostReady(effect.generation))
            elif isinstance(effect, RunCanary):
                with self.lock:
                    self.canaries_in_flight += 1
                    self.most_canaries = max(self.most_canaries, self.canaries_in_flight)
                for _ in range(20):
                    self.gate.admit()  # something to do, while the others push at the door
                with self.lock:
                    self.canaries_in_flight -= 1
                is_good = self.rng.random() < 0.7
                failed = CanaryFailed(effect.generation, F.UNKNOWN)
                self.gate.send(CanaryPassed(effect.generation) if is_good else failed)

    def work(self) -> None:
        try:
            for _ in range(self.calls):
                permit = self.gate.admit()
                if permit is None:
                    self.note("rejected")
                    self.gate.send(Tick())
                    continue
                outcome = self.rng.choice(["good"] * 20 + ["bad", "cancelled"])
                self.note(outcome)
                if outcome == "good":
                    self.gate.succeeded(permit)
                elif outcome == "bad":
                    self.gate.failed(permit, F.MISMATCH)
                else:
                    self.gate.cancelled(permit)
        except BaseException as error:
            self.errors.append(error)

    def note(self, outcome: str) -> None:
        with self.lock:
            self.outcomes[outcome] += 1


@pytest.mark.real
def test_sixty_four_threads_never_meet_two_canaries_and_every_permit_is_settled_once() -> None:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        crowd = Crowd(calls=300)
        threads = [threading.Thread(target=crowd.work) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before_s)
    assert crowd.errors == []
    assert crowd.most_canaries == 1
    counters = crowd.gate.state.counters
    settled = counters.successes + counters.cancelled + counters.stale + counters.failures
    good, bad, cancelled = (crowd.outcomes[key] for key in ("good", "bad", "cancelled"))
    assert settled == good + bad + cancelled
    assert counters.canaries > 3
