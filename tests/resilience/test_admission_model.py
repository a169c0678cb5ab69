"""Admission beside the same rules written a second time (`reference_admission.py`): no difference, step by step.

Hypothesis chooses the steps, and shrinks what it finds; the random walk takes many more of them in the same time. Each
seeded mutant of the product must be noticed by the walk. `make soak` lets Hypothesis take 100 000 steps too.
"""

import os
import random
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reference_admission import ReferenceQueue

from kensho.resilience.admission import AdmissionQueue, Candidate, Estimate, Priority, Refused, Ticket
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import Times, Work

ENGINES = ("primary", "standby")


def candidate(engine: str, times: tuple[Times, Times]) -> Candidate:
    return Candidate(engine, *times)


TIMES = st.builds(
    Times,
    st.sampled_from([(), ((8, 0.05),), ((8, 0.05), (64, 1.75)), ((1, 0.2),)]),
    st.sampled_from([0.0, 0.01, 0.1]),
)
ESTIMATES = st.builds(
    Estimate,
    st.lists(st.tuples(TIMES, TIMES), max_size=2).map(lambda times: tuple(map(candidate, ENGINES, times))),
    st.sampled_from([0.0, 0.1, 2.0]),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    st.integers(1, 2),
    st.sampled_from([(), (), ENGINES[:1], ENGINES[1:]]),
)
WORK = st.builds(Work, st.sampled_from([1, 8, 9, 100]), st.sampled_from([0, 0, 3, 30]), st.booleans())
SETTINGS = st.builds(
    lambda least, more, most, reserve, turn, crowd: AdmissionSettings(
        bound=least + more,
        bound_least=least,
        bound_most=least + more + most,
        bound_budget_s=4.0,
        critical_reserve=reserve,
        low_turn=turn,
        lifo_per_slot=crowd,
        deadlines_s=(1.0, 1.5, 2.0, 4.0),
    ),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 2),
    st.integers(1, 4),
    st.integers(0, 2),
)


def told(refused: list[Refused]) -> list[tuple[int, str, float]]:
    return [(one.ticket.number, one.reason, one.retry_after_s) for one in refused]


class SideBySide(RuleBasedStateMachine):
    """Times are multiples of 1/64 s, so that both sides compute the same sums."""

    @initialize(settings=SETTINGS)
    def begin(self, settings: AdmissionSettings) -> None:
        self.now_s = 1000.0
        self.queue = AdmissionQueue(settings)
        self.reference = ReferenceQueue(settings)
        self.seen: dict[int, Ticket] = {}
        self.live: set[int] = set()

    def settle(self, *numbers: int) -> None:
        """Every ticket has one outcome."""
        for number in numbers:
            self.live.remove(number)

    @rule(
        priority=st.sampled_from(list(Priority)),
        within_s=st.sampled_from([None, None, -1.0, 0.0, 0.25, 0.5, 3.0, float("inf"), float("nan")]),
        estimate=ESTIMATES,
        work=WORK,
        engine=st.sampled_from([None, None, None, *ENGINES]),
    )
    def offer(self, priority: Priority, within_s: Any, estimate: Estimate, work: Work, engine: str | None) -> None:
        deadline_s = None if within_s is None else self.now_s + within_s
        if deadline_s is not None and deadline_s != deadline_s:
            deadline_s = self.now_s - 1.0  # the reference has no word for "not a number": it is in the past
            given = float("nan")
        else:
            given = deadline_s
        ticket, refused = self.queue.offer(priority, given, self.now_s, estimate, work=work, engine=engine)
        assert told(refused) == self.reference.offer(priority, deadline_s, self.now_s, estimate, work, engine)
        self.seen[ticket.number] = ticket
        self.live.add(ticket.number)
        self.settle(*[one.ticket.number for one in refused])

    @rule(estimate=ESTIMATES, engine=st.sampled_from([None, *ENGINES]))
    def take(self, estimate: Estimate, engine: str | None) -> None:
        ticket, refused = self.queue.take(self.now_s, estimate, engine)
        number, refusals = self.reference.take(self.now_s, estimate, engine)
        assert (ticket and ticket.number, told(refused)) == (number, refusals)
        self.settle(*[one.ticket.number for one in refused], *([ticket.number] if ticket else []))

    @rule(
        index=st.integers(0, 40),
        within_s=st.sampled_from([0.5, float("inf")]),
        work=WORK,
        avoids=st.sampled_from(["", *ENGINES]),
        is_urgent=st.booleans(),
    )
    def resume(self, index: int, within_s: float, work: Work, avoids: str, is_urgent: bool) -> None:
        done = sorted(set(self.seen) - self.live)
        if done:
            before = self.seen[done[index % len(done)]]
            deadline_s = self.now_s + within_s
            again = self.queue.resume(before, deadline_s, work, self.now_s, avoids=avoids, is_urgent=is_urgent)
            number = self.reference.resume(
                before.priority, deadline_s, self.now_s, work, before.engine, avoids, is_urgent
            )
            assert again.number == number
            self.seen[number] = again
            self.live.add(number)

    @rule(index=st.integers(0, 40))
    def cancel(self, index: int) -> None:
        if self.seen:
            ticket = self.seen[index % len(self.seen)]
            was_there = self.queue.cancel(ticket)
            assert was_there == self.reference.drop(ticket.number) == (ticket.number in self.live)
            self.live.discard(ticket.number)

    @rule(index=st.integers(0, 40), estimate=ESTIMATES)
    def expire(self, index: int, estimate: Estimate) -> None:
        if self.seen:
            ticket = self.seen[index % len(self.seen)]
            refused = self.queue.expire(ticket, self.now_s, estimate)
            expected = self.reference.expire(ticket.number, self.now_s, estimate)
            assert told([refused] if refused else []) == ([expected] if expected else [])
            self.live.discard(ticket.number)

    @rule(estimate=ESTIMATES)
    def strand(self, estimate: Estimate) -> None:
        ticket = self.queue.take_stranded(estimate)
        assert (ticket and ticket.number) == self.reference.stranded(estimate)
        if ticket:
            self.settle(ticket.number)

    @rule(by_s=st.sampled_from([1 / 64, 6 / 64, 7 / 64, 0.25, 1.0, 3.0, 9.75, 10.0]))
    def wait(self, by_s: float) -> None:
        self.now_s += by_s

    @rule(estimate=ESTIMATES)
    def look(self, estimate: Estimate) -> None:
        self.queue.look(self.now_s, estimate)
        self.reference.look(self.now_s, estimate)

    @invariant()
    def they_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        waiting = {p: sum(w.priority == p for w in self.reference.waiting) for p in Priority}
        assert self.queue.depths() == waiting
        assert len(self.queue) == sum(waiting.values()) == len(self.live)
        assert [ticket.number for ticket in self.queue.urgent()] == self.reference.urgent()
        assert self.queue.level(self.now_s) == self.reference.level(self.now_s)


IS_LONG = bool(os.environ.get("KENSHO_LONG"))
TestSideBySide = SideBySide.TestCase
TestSideBySide.settings = settings(
    max_examples=2200 if IS_LONG else 15,
    stateful_step_count=60 if IS_LONG else 40,
    deadline=None,
    derandomize=not IS_LONG,
    suppress_health_check=list(HealthCheck),
)


# --- the random walk ---

ALL_TIMES = [Times(), Times(((8, 0.05), (64, 0.3)), 0.01), Times(((1, 0.2),), 0.1), Times(((64, 1.75),))]


def random_settings(rng: random.Random) -> AdmissionSettings:
    least, bound = rng.randint(1, 4), rng.choice([4, 6, 8, 30])
    return AdmissionSettings(
        bound=bound,
        bound_least=least,
        bound_most=bound + rng.randint(0, 4),
        bound_budget_s=4.0,
        critical_reserve=rng.randint(0, 2),
        low_turn=rng.randint(1, 4),
        lifo_per_slot=rng.randint(0, 2),
        saturated_rejections=rng.randint(2, 5),
        deadlines_s=(1.0, 1.5, 2.0, 4.0),
    )


def random_estimate(rng: random.Random) -> Estimate:
    engines = ENGINES[: rng.choice([0, 1, 2, 2])]
    candidates = tuple(Candidate(engine, rng.choice(ALL_TIMES), rng.choice(ALL_TIMES)) for engine in engines)
    idle = () if rng.random() < 0.8 else engines[-1:]
    return Estimate(candidates, rng.choice([0.0, 0.1, 2.0]), rng.choice([0.0, 0.5, 1.0, 3.0]), rng.randint(1, 2), idle)


def walk(queue_class: Any, *, steps: int, seed: int) -> None:
    """Raises AssertionError at the first difference. A new queue every 200 steps."""
    rng = random.Random(seed)
    for done in range(0, steps, 200):
        _walk(queue_class, rng, min(200, steps - done))


_STEPS = (
    ["offer", "take", "resume", "cancel", "expire", "strand", "look", "wait"],
    [9, 5, 1, 1, 1, 0.5, 3, 3],
)


def _walk(queue_class: Any, rng: random.Random, steps: int) -> None:
    settings = random_settings(rng)
    queue, reference, now_s = queue_class(settings), ReferenceQueue(settings), 1000.0
    seen: list[Ticket] = []
    estimate = random_estimate(rng)
    for _ in range(steps):
        if rng.random() < 0.3:
            estimate = random_estimate(rng)
        match rng.choices(*_STEPS)[0]:
            case "offer":
                priority, work = (
                    Priority(rng.choice([0, 1, 1, 2, 2, 3, 3])),
                    Work(rng.choice([1, 9, 100]), rng.choice([0, 3, 30]), rng.random() < 0.2),
                )
                deadline_s = rng.choice([None, now_s - 1.0, now_s + 0.5, now_s + 3.0, now_s + 9.0])
                engine = rng.choice([None, None, None, *ENGINES])
                ticket, refused = queue.offer(priority, deadline_s, now_s, estimate, work=work, engine=engine)
                assert told(refused) == reference.offer(priority, deadline_s, now_s, estimate, work, engine)
                seen.append(ticket)
            case "take":
                engine = rng.choice([None, *ENGINES])
                taken, refused = queue.take(now_s, estimate, engine)
                assert (taken and taken.number, told(refused)) == reference.take(now_s, estimate, engine)
            case "resume" if seen:
                before, work, avoids = (
                    rng.choice(seen),
                    Work(rng.choice([1, 9]), rng.choice([0, 9]), rng.random() < 0.3),
                    rng.choice(["", *ENGINES]),
                )
                deadline_s, is_urgent = now_s + rng.choice([0.5, float("inf")]), rng.random() < 0.5
                again = queue.resume(before, deadline_s, work, now_s, avoids=avoids, is_urgent=is_urgent)
                number = reference.resume(before.priority, deadline_s, now_s, work, before.engine, avoids, is_urgent)
                assert again.number == number
                seen.append(again)
            case "cancel" if seen:
                ticket = rng.choice(seen[-12:])
                assert queue.cancel(ticket) == reference.drop(ticket.number)
            case "expire" if seen:
                ticket = rng.choice(seen[-12:])
                one = queue.expire(ticket, now_s, estimate)
                assert (told([one])[0] if one else None) == reference.expire(ticket.number, now_s, estimate)
            case "strand":
                lost = queue.take_stranded(estimate)
                assert (lost and lost.number) == reference.stranded(estimate)
            case "look":
                queue.look(now_s, estimate)
                reference.look(now_s, estimate)
            case "wait":
                now_s += rng.choice([1 / 64, 7 / 64, 0.25, 1.0, 3.0, 10.0])
        assert queue.level(now_s) == reference.level(now_s)
        assert queue.depths() == {p: sum(w.priority == p for w in reference.waiting) for p in Priority}
        assert [ticket.number for ticket in queue.urgent()] == reference.urgent()


def test_two_thousand_random_steps_show_no_difference() -> None:
    walk(AdmissionQueue, steps=2_000, seed=1)


@pytest.mark.real
def test_a_hundred_thousand_random_steps_show_no_difference() -> None:
    walk(AdmissionQueue, steps=100_000, seed=2)


MUTANTS = {
    "the deadline is not asked for at the start": (
        "            if _is_in_time(ticket, now_s, estimate):",
        "            if True:",
    ),
    "in time means before the deadline": (
        "return now_s + estimate.needed_s(ticket) <= ticket.deadline_s",
        "return now_s <= ticket.deadline_s",
    ),
    "evicts the newest": (
        "oldest = next(iter(self._fresh[lowest].values()))",
        "oldest = next(reversed(self._fresh[lowest].values()))",
    ),
    "evicts its own class": ("if lowest <= newcomer.priority:", "if lowest < newcomer.priority:"),
    "no reserve for CRITICAL": (
        "self._settings.critical_reserve if newcomer.priority is Priority.CRITICAL else 0",
        "0",
    ),
    "one place too many": (
        "        if self._fresh_count < bound:\n            return []",
        "        if self._fresh_count <= bound:\n            return []",
    ),
    "the bound does not follow the service time": (
        "bound = self._settings.bound_for(estimate.service_p95_s, estimate.slots)",
        "bound = self._settings.bound",
    ),
    "the lowest class never has a turn": ("self._starts_since_low >= self._settings.low_turn - 1", "False"),
    "the lowest class has its turn before CRITICAL": ("and not self._waits(Priority.CRITICAL):", "and True:"),
    "the turn comes one too late": (">= self._settings.low_turn - 1", ">= self._settings.low_turn"),
    "never the newest first": ("is_lifo = is_crowd and", "is_lifo = False and"),
    "the newest first without a crowd": ("is_crowd = len(fresh) >", "is_crowd = len(fresh) > 0 or len(fresh) >"),
    "SATURATED sheds HIGH too": (
        "level is Level.SATURATED and priority >= Priority.NORMAL",
        "level is Level.SATURATED and priority >= Priority.HIGH",
    ),
    "SATURATED for ever": ("now_s - rejected_at_s[0] < self._window_s", "True"),
    "a guess refuses": ("            ticket = replace(ticket, work=work.proven())", "            pass"),
    "a guess refuses who was begun": ("self._next_number, work.proven()", "self._next_number, work"),
    "shedding counts as rejection": (
        'return [self._refuse(newcomer, "saturated" if is_shed else "pressured", estimate)]',
        'return [self._reject(newcomer, "saturated" if is_shed else "pressured", now_s, estimate)]',
    ),
    "PRESSURED at once": ("now_s - self._slow_since_s >= self._after_s", "True"),
    "PRESSURED without end": ("self._is_slow = bool(shares) and", "self._is_slow = self._is_slow or bool(shares) and"),
    "a deadline of the client's own choice saturates": (
        "if deadline_s - now_s >= self._settings.deadlines_s[priority]:",
        "if True:",
    ),
    "an engine that is too slow for everybody saturates nothing": (
        "if deadline_s - now_s >= self._settings.deadlines_s[priority]:",
        "if False:",
    ),
    "an empty queue sheds": ("        if not len(self):\n            return False\n", ""),
    "a begun request can be evicted": (
        "line = self._urgent if is_urgent else self._resumed",
        "line = self._urgent if is_urgent else self._fresh",
    ),
    "a begun request goes last": (
        "for line in (urgent, resumed, reversed(fresh) if is_lifo else fresh):",
        "for line in (urgent, reversed(fresh) if is_lifo else fresh, resumed):",
    ),
    "a slow reader is as urgent as one who lost its engine": (
        "line = self._urgent if is_urgent else self._resumed",
        "line = self._urgent",
    ),
    "interrupts for one who would not go next": (
        "if not self._resumed[Priority.HIGH] and not self._fresh[Priority.HIGH]:",
        "if True:",
    ),
    "a cancelled ghost stays counted": (
        "        self._fresh_count -= line is self._fresh[ticket.priority]\n",
        "",
    ),
    "a request goes back to the engine that lost it": ("not (has_others and self.avoids == engine)", "True"),
    "a slow engine gets what it cannot do": (
        "if is_late_anywhere or now_s + estimate.needed_s(ticket, engine) <= ticket.deadline_s:",
        "if True:",
    ),
    "whoever is too much for a slow engine is in the way of the others": (
        "is_late_anywhere or now_s",
        "ticket is not None or now_s",
    ),
    "a slow engine looks at one of each class": ("LOOKED_AT = 8", "LOOKED_AT = 1"),
    "an idle engine does not help": (
        "refused = [] if self._may_begin(ticket, now_s, estimate) else self",
        "refused = self",
    ),
    "an idle engine takes what it cannot do": (
        "and now_s + estimate.needed_s(newcomer, engine) <= newcomer.deadline_s",
        "and True",
    ),
    "an idle engine takes who may not use it": ("newcomer.engine in {None, engine} and", ""),
    "nobody is stranded": ("if not self._named_count:", "if True:"),
}


def mutant(old: str, new: str) -> Any:
    """The queue of the product with one piece of its source exchanged."""
    sources = {name: Path(str(sys.modules[f"{_PACKAGE}.{name}"].__file__)).read_text() for name in _MUTATED}
    places = sum(source.count(old) for source in sources.values())
    assert places == 1, f"{old!r} is there {places} times"
    modules = {name: types.ModuleType(f"mutant_of_{name}") for name in _MUTATED}
    sys.modules |= {module.__name__: module for module in modules.values()}
    try:
        for name, source in sources.items():
            changed = source.replace(old, new)
            for other in _MUTATED:
                changed = changed.replace(f"from {_PACKAGE}.{other} import", f"from mutant_of_{other} import")
            exec(compile(changed, modules[name].__name__, "exec"), modules[name].__dict__)
    finally:
        for module in modules.values():
            del sys.modules[module.__name__]
    modules["admission"].__dict__["Priority"] = Priority
    return modules["admission"].__dict__["AdmissionQueue"]


_PACKAGE = "kensho.resilience"
_MUTATED = ("pressure", "admission")  # in the order in which they import each other


@pytest.mark.real
@pytest.mark.parametrize(("old", "new"), MUTANTS.values(), ids=MUTANTS)
def test_the_walk_catches_the_mutant(old: str, new: str) -> None:
    changed = mutant(old, new)
    with pytest.raises((AssertionError, KeyError, TypeError, StopIteration)):
        walk(changed, steps=40_000, seed=3)
