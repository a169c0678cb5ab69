"""The breaker against an independent reference, and against mutants of itself that the comparison must catch."""

import random
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kensho.base.errors import ConfigError
from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Admit,
    Admitted,
    BreakerSettings,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Cancelled,
    Changed,
    Failed,
    Force,
    HostFailed,
    HostReady,
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
from kensho.resilience.classify import FailureClass as F

SETTINGS = BreakerSettings()
KINDS = {Admitted: "admitted", Rejected: "rejected", KillHost: "kill", StartHost: "start", RunCanary: "canary"}


class Reference:
    """The same rules told differently: mutable, with live tickets instead of generations, and times written out."""

    def __init__(self, now: float) -> None:
        self.mode, self.now, self.since = "CLOSED", now, now
        self.until: float | None = None
        self.after_open = "HALF_OPEN"
        self.live: set[object] = set()
        self.canary: object | None = None
        self.host: object | None = None
        self.bad = self.good = self.opened = 0
        self.dead_starts: list[float] = []
        self.did: list[str] = []

    def go(self, mode: str, lasts: float | None) -> None:
        self.mode, self.since = mode, self.now
        self.until = None if lasts is None else self.now + lasts
        self.live, self.canary, self.bad, self.good = set(), None, 0, 0

    def probe(self) -> None:
        self.canary, self.until = object(), self.now + 5.0
        self.did.append("canary")

    def halve(self) -> None:
        self.go("HALF_OPEN", None)
        self.probe()

    def respawn(self) -> None:
        self.go("RESTARTING", 120.0)
        self.host = object()
        self.did.append("start")

    def trip(self, draw: float, then: str) -> None:
        seconds = min(60.0 * 2**self.opened, 900.0)
        self.opened += 1
        self.go("OPEN", min(900.0, seconds * (0.8 + 0.4 * draw)))
        self.after_open = then
        if then == "RESTARTING":
            self.did.append("kill")

    def dead_start(self, draw: float) -> None:
        self.dead_starts = [t for t in self.dead_starts if t > self.now - 600.0] + [self.now]
        if len(self.dead_starts) == 3:
            self.go("HARD_OPEN", None)
        else:
            self.go("OPEN", 5.0 * (0.8 + 0.4 * draw))
            self.after_open = "RESTARTING"
        self.did.append("kill")

    def bad_canary(self, kind: F, draw: float) -> None:
        if kind in (F.CRASH, F.STICKY):
            self.dead_start(draw)
        else:
            self.trip(draw, "RESTARTING" if kind is F.HANG else "HALF_OPEN")

    def time(self, now: float, draw: float) -> None:
        self.now, self.did = now, []
        if self.mode == "HALF_OPEN" and self.canary is None:
            self.probe()
        elif self.until is not None and self.until <= now:
            if self.mode == "OPEN":
                self.respawn() if self.after_open == "RESTARTING" else self.halve()
            elif self.mode == "HALF_OPEN":
                self.bad_canary(F.HANG, draw)
            elif self.mode == "RESTARTING":
                self.dead_start(draw)

    def admit(self) -> object:
        ticket = object()
        if self.mode in ("CLOSED", "FORCED_CLOSED"):
            self.live.add(ticket)
            self.did.append("admitted")
        else:
            self.did.append("rejected")
        return ticket

    def settle(self, ticket: object, outcome: F | str, draw: float) -> None:
        if ticket not in self.live:
            return
        self.live.discard(ticket)
        if outcome == "ok":
            self.bad = 0
        elif self.mode == "CLOSED" and isinstance(outcome, F):
            if outcome in (F.CRASH, F.HANG, F.STICKY):
                self.respawn()
                self.did.insert(-1, "kill")
                return
            self.bad += {F.UNKNOWN: 1, F.WRONG_NUMBERS: 2, F.TIMEOUT: 3, F.MISMATCH: 3}[outcome]
            if self.bad >= 3:
                self.opened = 0 if self.now >= self.since + 600.0 else self.opened
                self.trip(draw, "HALF_OPEN")

    def settle_canary(self, ticket: object, outcome: F | str, draw: float) -> None:
        if ticket is not self.canary or ticket is None:
            return
        if outcome == "cancel":
            self.canary = self.until = None
        elif outcome == "ok":
            self.good += 1
            self.go("CLOSED", None) if self.good == 2 else self.probe()
        else:
            assert isinstance(outcome, F)
            self.bad_canary(outcome, draw)

    def settle_host(self, ticket: object, is_up: bool, draw: float) -> None:
        if self.mode == "RESTARTING" and ticket is self.host:
            self.halve() if is_up else self.dead_start(draw)

    def force(self, mode: Mode | None) -> None:
        if mode is not None:
            self.go(mode.value, None)
        elif self.mode in ("HARD_OPEN", "FORCED_OPEN", "FORCED_CLOSED"):
            self.dead_starts, self.opened = [], 0
            self.respawn()


class Pair:
    """A breaker (`module` may be a mutant) and the reference, given the same inputs; `check` compares them."""

    def __init__(self, module: Any = breaker) -> None:
        self.step = module.step
        self.now = 1000.0
        self.state: State = module.closed(self.now)
        self.reference = Reference(self.now)
        self.permits: list[tuple[int, object]] = []
        self.canaries: list[tuple[int, object]] = []
        self.hosts: list[tuple[int, object]] = []
        self.canary_in_flight = 0

    def do(self, event: Any, tell: Callable[[], Any], draw: float = 0.5) -> None:
        self.reference.time(self.now, draw)
        ticket = tell()
        self.state, effects = self.step(self.state, event, self.now, SETTINGS, draw)
        did = [KINDS[type(effect)] for effect in effects if type(effect) in KINDS]
        assert sorted(did) == sorted(self.reference.did), (event, did, self.reference.did)
        for effect in effects:
            if isinstance(effect, Admitted):
                self.permits.append((effect.generation, ticket))
            elif isinstance(effect, RunCanary):
                self.canaries.append((effect.generation, self.reference.canary))
            elif isinstance(effect, StartHost):
                self.hosts.append((effect.generation, self.reference.host))
            elif isinstance(effect, Rejected) and self.state.until_s is not None:
                assert effect.retry_after_s == pytest.approx(self.state.until_s - self.now)
        assert self.state.mode == self.reference.mode, (event, self.state.mode, self.reference.mode)
        assert self.state.until_s == (
            None if self.reference.until is None else pytest.approx(self.reference.until, abs=1e-9)
        )
        self.reference.until = self.state.until_s  # equal but for rounding, which must not add up to a difference
        timers = [effect.at_s for effect in effects if isinstance(effect, SetTimer)]
        if timers and self.state.until_s is not None:
            assert timers[-1] == self.state.until_s

    def admit(self, draw: float = 0.5) -> None:
        self.do(Admit(), self.reference.admit, draw)

    def settle(self, which: int, outcome: F | str, draw: float) -> None:
        if self.permits:
            generation, ticket = self.permits.pop(which % len(self.permits))
            event = {"ok": Succeeded(generation), "cancel": Cancelled(generation)}.get(str(outcome))
            event = event or Failed(generation, F(outcome))
            self.do(event, lambda: self.reference.settle(ticket, outcome, draw), draw)

    def settle_canary(self, which: int, outcome: F | str, draw: float) -> None:
        if self.canaries:
            generation, ticket = self.canaries.pop(which % len(self.canaries))
            event = {"ok": CanaryPassed(generation), "cancel": CanaryCancelled(generation)}.get(str(outcome))
            event = event or CanaryFailed(generation, F(outcome))
            self.do(event, lambda: self.reference.settle_canary(ticket, outcome, draw), draw)

    def settle_host(self, which: int, is_up: bool, draw: float) -> None:
        if self.hosts:
            generation, ticket = self.hosts.pop(which % len(self.hosts))
            event = HostReady(generation) if is_up else HostFailed(generation)
            self.do(event, lambda: self.reference.settle_host(ticket, is_up, draw), draw)

    def force(self, mode: Mode | None) -> None:
        self.do(Force(mode), lambda: self.reference.force(mode))

    def advance(self, by_s: float | None, draw: float) -> None:
        """None: to the very moment at which time changes something; else by so many seconds."""
        if by_s is not None:
            self.now += by_s
        elif self.state.until_s is not None:
            self.now = max(self.now, self.state.until_s)
        self.do(Tick(), lambda: None, draw)


STEPS_S = [0.0, 1e-6, 0.3, 4.999, 5.0, 59.0, 120.0, 599.9, 600.0, 900.0, None]
OUTCOMES: list[F | str] = ["ok", "cancel", *F]
FORCED = [Mode.FORCED_OPEN, Mode.FORCED_CLOSED, None]


class Compared(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    @rule(times=st.integers(1, 4), draw=st.sampled_from([0.0, 0.5, 0.999]))
    def admit(self, times: int, draw: float) -> None:
        for _ in range(times):
            self.pair.admit(draw)

    @precondition(lambda self: self.pair.permits)
    @rule(which=st.integers(0, 9), outcome=st.sampled_from(OUTCOMES), draw=st.floats(0, 0.999))
    def settle(self, which: int, outcome: F | str, draw: float) -> None:
        self.pair.settle(which, outcome, draw)

    @precondition(lambda self: self.pair.canaries)
    @rule(which=st.integers(-2, -1), outcome=st.sampled_from(OUTCOMES), draw=st.floats(0, 0.999))
    def settle_canary(self, which: int, outcome: F | str, draw: float) -> None:
        self.pair.settle_canary(which, outcome, draw)

    @precondition(lambda self: self.pair.hosts)
    @rule(which=st.integers(-2, -1), is_up=st.booleans(), draw=st.floats(0, 0.999))
    def settle_host(self, which: int, is_up: bool, draw: float) -> None:
        self.pair.settle_host(which, is_up, draw)

    @rule(by_s=st.sampled_from(STEPS_S), draw=st.floats(0, 0.999))
    def advance(self, by_s: float | None, draw: float) -> None:
        self.pair.advance(by_s, draw)

    @rule(mode=st.sampled_from(FORCED))
    def force(self, mode: Mode | None) -> None:
        self.pair.force(mode)

    @invariant()
    def open_time_is_bounded(self) -> None:
        if self.pair.state.mode is Mode.OPEN:
            assert self.pair.state.until_s is not None
            assert self.pair.state.until_s - self.pair.state.entered_s <= SETTINGS.open_cap_s


Compared.TestCase.settings = hypothesis_settings(max_examples=30, stateful_step_count=40, deadline=None)
TestComparedWithTheReference = Compared.TestCase


def walk(module: Any, steps: int, seed: int) -> set[str]:
    """A random walk that visits every mode often; raises AssertionError at the first difference."""
    rng = random.Random(seed)
    pair = Pair(module)
    visited = set()
    while steps > 0:
        steps -= 1
        visited.add(pair.reference.mode)
        draw = rng.choice([0.0, 0.5, rng.random()])
        which = -1 if rng.random() < 0.9 else rng.randrange(100)
        outcome = rng.choice([F.UNKNOWN, F.UNKNOWN, "cancel", rng.choice(OUTCOMES)])
        chance = rng.random()
        if chance < 0.02 or (pair.reference.mode == "HARD_OPEN" and chance < 0.2):
            pair.force(rng.choice(FORCED))
        elif chance < 0.3:
            pair.admit(draw)
        elif chance < 0.5:
            pair.settle(which, outcome, draw)
        elif chance < 0.7:
            pair.settle_canary(rng.choice([-1, -1, -2]), rng.choice(["ok", "ok", outcome]), draw)
        elif chance < 0.8:
            pair.settle_host(which, rng.random() < 0.7, draw)
        else:
            pair.advance(rng.choice([0.3, None, rng.choice(STEPS_S)]), draw)
        del pair.permits[:-50], pair.canaries[:-5], pair.hosts[:-5]
    return visited


def test_no_difference_from_the_reference_on_a_long_walk() -> None:
    assert walk(breaker, steps=20_000, seed=1) == set(Mode)


MUTANTS = {
    "users are admitted at half-open": ("{Mode.CLOSED, Mode.FORCED_CLOSED})", "{Mode.CLOSED, Mode.HALF_OPEN})"),
    "a stale result counts": (
        "is_current = generation == state.generation and state.mode in ADMITTING",
        "is_current = state.mode in ADMITTING",
    ),
    "a stale canary counts": (
        "is_current = generation == state.generation and state.mode is Mode.HALF_OPEN",
        "is_current = state.mode is Mode.HALF_OPEN",
    ),
    "a stale start counts": (
        "is_current = generation == state.generation and state.mode is Mode.RESTARTING\n            return _half",
        "is_current = state.mode is Mode.RESTARTING\n            return _half",
    ),
    "a cancelled call is a success": (
        "return _count(state, cancelled=counters.cancelled + 1), ()",
        "return replace(state, weight=0), ()",
    ),
    "a cancelled call is a failure": (
        "return _count(state, cancelled=counters.cancelled + 1), ()",
        "return replace(state, weight=state.weight + 1), ()",
    ),
    "a cancelled canary keeps its permit": ("replace(state, until_s=None), (SetTimer", "state, (SetTimer"),
    "a cancelled canary passed": (
        "return replace(state, until_s=None), (",
        "return _enter(state, at, Mode.CLOSED, '', '')\n        (",
    ),
    "a second canary beside the first": (
        "    if state.until_s is None or at.now_s < state",
        "    if state.mode is Mode.HALF_OPEN and at.now_s < (state.until_s or 0):\n"
        "        return _run_canary(state, at)\n"
        "    if state.until_s is None or at.now_s < state",
    ),
    "the canary has no deadline": ("until_s = at.now_s + at.settings.canary_timeout_s", "until_s = at.now_s + 1e9"),
    "one canary is enough": (
        "state.passes < at.settings.success_threshold",
        "state.passes + 1 < at.settings.success_threshold",
    ),
    "one failure too many": (
        "state.weight < at.settings.failure_threshold",
        "state.weight <= at.settings.failure_threshold",
    ),
    "late by one tick": ("at.now_s < state.until_s", "at.now_s <= state.until_s"),
    "failures need not be in a row": ("return replace(state, weight=0), ()", "return state, ()"),
    "a crash waits for the threshold": (
        "if event.failure in RESTART_AT_ONCE:",
        "if event.failure is FailureClass.HANG:",
    ),
    "the hung host is not killed": ("kill = (KillHost(),) if must_kill else ()", "kill = ()"),
    "no doubling": ("2.0 ** min(state.trips, 30)", "1.0"),
    "no cap": ("cap_s = at.settings.open_cap_s", "cap_s = 1e9"),
    "no jitter": ("2.0 * self.draw - 1.0", "0.0"),
    "trips are never forgotten": (
        "state = replace(state, trips=0)\n    return _open",
        "state = state\n    return _open",
    ),
    "start loops go on for ever": ("len(failed_s) >= at.settings.max_failed_starts", "len(failed_s) > 10_000"),
    "old failed starts count": ("if at.now_s - t < window_s", "if True"),
    "a killed host gets a canary": ("must_restart=failure is FailureClass.HANG", "must_restart=False"),
    "a forced circuit opens": ("if state.mode is Mode.FORCED_CLOSED:", "if state.mode is Mode.FORCED_OPEN:"),
    "a person's word is ignored": (
        "return _restart(replace(state, failed_starts_s=(), trips=0)",
        "return _restart(replace(state, trips=0)",
    ),
}


@pytest.fixture
def mutate() -> Iterator[Callable[[str, str], types.ModuleType]]:
    name = "kensho_breaker_mutant"

    def make(old: str, new: str) -> types.ModuleType:
        source = Path(breaker.__file__).read_text()
        assert source.count(old) == 1, f"the mutation must hit exactly one place: {old!r}"
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(compile(source.replace(old, new), name, "exec"), module.__dict__)
        return module

    yield make
    sys.modules.pop(name, None)


@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_the_comparison_catches_the_mutant(mutate: Callable[[str, str], Any], old: str, new: str) -> None:
    mutant = mutate(old, new)
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(10):
            walk(mutant, steps=3_000, seed=seed)


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


def test_a_crash_goes_round_closed_restarting_half_open_closed_and_tells_each_change() -> None:
    state, told = run(breaker.closed(1000.0), Admit(), Failed(1, F.CRASH))
    for answer in (HostReady, CanaryPassed, CanaryPassed):
        state, more = run(state, answer(state.generation))
        told += more
    changes = [(c.from_mode, c.to_mode) for c in told if isinstance(c, Changed)]
    assert changes == [
        (Mode.CLOSED, Mode.RESTARTING),
        (Mode.RESTARTING, Mode.HALF_OPEN),
        (Mode.HALF_OPEN, Mode.CLOSED),
    ]
    assert all(c.reason and c.next_step for c in told if isinstance(c, Changed))


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
    assert effects == [SetTimer(1000.0)]
    state, effects = run(state, Tick(), Tick(), Tick())
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
        state, _ = breaker.step(state, CanaryFailed(state.generation, F.MISMATCH), now, SETTINGS)
    assert waits == pytest.approx([60.0, 120.0, 240.0, 480.0, 900.0, 900.0])


def test_a_circuit_is_not_forced_to_a_mode_that_nobody_can_hold() -> None:
    with pytest.raises(ConfigError):
        run(breaker.closed(0.0), Force(Mode.HALF_OPEN))


def test_the_snapshot_has_the_figures_of_a_status_page() -> None:
    state, _ = run(breaker.closed(990.0), Admit(), Succeeded(1), Admit(), Failed(1, F.TIMEOUT), Admit())
    seen = breaker.snapshot(state, 1010.0)
    assert seen.mode is Mode.OPEN
    assert seen.leaves_in_s == pytest.approx(50.0)
    assert (seen.last_success_ago_s, seen.last_failure_ago_s, seen.in_mode_s) == (10.0, 10.0, 10.0)
    assert (seen.counters.admitted, seen.counters.rejected) == (2, 1)
    assert (seen.counters.successes, seen.counters.failures) == (1, 1)
