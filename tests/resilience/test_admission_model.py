"""Admission beside the same rules written a second time (`reference_admission.py`): no difference, step by step.

Hypothesis chooses the steps, and shrinks what it finds; the random walk takes many more of them in the same time. Each
seeded mutant of the product must be noticed by the walk (`test_admission_mutants.py`). `make soak` lets Hypothesis take
100 000 steps too.
"""

import os
from typing import Any

import pytest
from admission_walk import ENGINES, told, walk
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from reference_admission import ReferenceQueue

from kensho.resilience.admission import AdmissionQueue, Candidate, Estimate, Priority, Ticket
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import Times, Work


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


def test_two_thousand_random_steps_show_no_difference() -> None:
    walk(AdmissionQueue, steps=2_000, seed=1)


@pytest.mark.real
def test_a_hundred_thousand_random_steps_show_no_difference() -> None:
    walk(AdmissionQueue, steps=100_000, seed=2)
