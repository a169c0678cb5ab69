"""The breaker against an independent reference, and against mutants of itself that the comparison must catch.

Hypothesis chooses the steps, and shrinks what it finds; the random walk takes many more of them in the same time.
`make soak` lets Hypothesis take 100 000 steps too.
"""

import os
from collections import Counter

import pytest
from breaker_walk import FORCED, OUTCOMES, PACES, SETTINGS, START_OUTCOMES, STEPS_S, Pair, mutant, walk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kensho.resilience import breaker
from kensho.resilience.circuit import Mode
from kensho.resilience.failure_class import FailureClass as F
from kensho.resilience.transitions import TRANSITIONS

DRAWS = st.floats(0, 0.999)
IS_LONG = bool(os.environ.get("KENSHO_LONG"))
TAKEN = Counter[str]()
"""By Hypothesis: rules, and the inputs that they made, each compared."""


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
        TAKEN["rules"] += 1
        if self.pair.state.mode is Mode.OPEN:
            assert self.pair.state.until_s is not None
            assert self.pair.state.until_s - self.pair.state.entered_s <= SETTINGS.open_cap_s

    def teardown(self) -> None:
        TAKEN["inputs"] += self.pair.steps


TestComparedWithTheReference = Compared.TestCase
TestComparedWithTheReference.settings = settings(
    max_examples=2200 if IS_LONG else 15,
    stateful_step_count=60 if IS_LONG else 30,
    deadline=None,
    derandomize=not IS_LONG,
    suppress_health_check=list(HealthCheck),
)


if IS_LONG:  # else it is a sample of a few hundred steps; `make soak` takes them all

    def test_hypothesis_took_a_hundred_thousand_steps() -> None:
        print(f"{TAKEN['rules']} rules, {TAKEN['inputs']} inputs")
        assert min(TAKEN.values()) >= 100_000


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
