from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queueing import CRITICAL, HIGH, LOW, NORMAL, NOTHING_KNOWN, fill, needs, queue

from kensho.base.errors import DeadlineMissed, Overloaded
from kensho.resilience.admission import AdmissionQueue, Candidate, Estimate, Priority, Refused, Ticket
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import Times
from kensho.testing.load import arrivals, brownout, step
from kensho.testing.simulation import KenshoPolicy, simulate

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.sampled_from(list(Priority)), st.sampled_from([None, 0.05, 0.5, 5.0])),
        st.tuples(st.just("take"), st.sampled_from([0.0, 0.2]), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 50), st.none()),
        st.tuples(st.just("wait"), st.sampled_from([0.001, 0.09, 0.2, 3.0]), st.none()),
    ),
    max_size=80,
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS, bound=st.integers(1, 6), reserve=st.integers(0, 2))
def test_every_request_has_exactly_one_outcome_and_the_bound_holds(
    operations: list[tuple[str, Any, Any]], bound: int, reserve: int
) -> None:
    waiting, now = queue(bound=bound, critical_reserve=reserve, deadlines_s=(1.0, 1.0, 2.0, 4.0)), 0.0
    offered: dict[int, Ticket] = {}
    outcomes: Counter[int] = Counter()
    live: dict[int, Ticket] = {}

    def settle(*tickets: Ticket) -> None:
        for ticket in tickets:
            outcomes[ticket.number] += 1
            live.pop(ticket.number, None)

    for what, first, second in operations:
        if what == "offer":
            before = dict(live)
            ticket, refused = waiting.offer(first, None if second is None else now + second, now, NOTHING_KNOWN)
            offered[ticket.number] = live[ticket.number] = ticket
            for one in refused:
                if one.reason == "evicted":
                    below = [t for t in before.values() if t.priority == max(t.priority for t in before.values())]
                    assert one.ticket.priority > ticket.priority
                    assert one.ticket == min(below, key=lambda t: t.number)
                assert one.retry_after_s > 0
            settle(*[one.ticket for one in refused])
        elif what == "take":
            started, refused = waiting.take(now, needs(first))
            settle(*[one.ticket for one in refused], *([started] if started else []))
            assert started is None or now + first <= started.deadline_s
            assert started is not None or not live
            assert all(one.ticket.deadline_s < now + first for one in refused)
        elif what == "cancel" and first in offered:
            assert waiting.cancel(offered[first]) is (first in live)
            if first in live:
                settle(offered[first])
        elif what == "wait":
            now += first
        assert len(waiting) == len(live) == sum(waiting.depths().values())
        assert len(waiting) <= bound + reserve
        assert sum(t.priority is not CRITICAL for t in live.values()) <= bound
    assert all(outcomes[number] == (number not in live) for number in offered)


def test_a_full_queue_gives_the_place_of_the_oldest_lowest_to_a_more_important_newcomer() -> None:
    waiting = queue(bound=3)
    low = fill(waiting, LOW, 2)
    fill(waiting, NORMAL, 1)
    ticket, refused = waiting.offer(HIGH, None, 0.0, NOTHING_KNOWN)
    assert [(one.ticket, one.reason) for one in refused] == [(low[0], "evicted")]
    assert waiting.take(0.0, NOTHING_KNOWN) == (ticket, [])


def test_a_full_queue_refuses_its_own_class_and_says_when_to_come_back() -> None:
    waiting = queue(bound=3)
    fill(waiting, NORMAL, 3)
    ticket, refused = waiting.offer(NORMAL, None, 0.0, Estimate(service_s=2.0, slots=2))
    assert refused == [Refused(ticket, "full", 4.0)]


def test_critical_requests_have_places_of_their_own() -> None:
    waiting = queue(bound=100, critical_reserve=10)
    fill(waiting, CRITICAL, 100)
    ticket, refused = waiting.offer(HIGH, None, 0.0, NOTHING_KNOWN)
    assert [(one.ticket, one.reason) for one in refused] == [(ticket, "full")]
    fill(waiting, CRITICAL, 10)
    ticket, refused = waiting.offer(CRITICAL, None, 0.0, NOTHING_KNOWN)
    assert [(one.ticket, one.reason) for one in refused] == [(ticket, "full")]


def test_hopeless_requests_lose_their_place_before_a_living_one_does() -> None:
    waiting = queue(bound=2)
    doomed, _ = waiting.offer(HIGH, 1.0, 0.0, NOTHING_KNOWN)
    fill(waiting, LOW, 1)
    _, refused = waiting.offer(NORMAL, None, 2.0, NOTHING_KNOWN)
    assert [(one.ticket, one.reason) for one in refused] == [(doomed, "deadline")]


def test_a_deadline_in_the_past_is_refused_at_the_door() -> None:
    ticket, refused = queue().offer(CRITICAL, 4.0, 5.0, NOTHING_KNOWN)
    assert [(one.ticket, one.reason) for one in refused] == [(ticket, "deadline")]
    assert isinstance(refused[0].error(), DeadlineMissed)


def test_a_request_starts_only_if_its_first_token_can_come_in_time() -> None:
    waiting = queue()
    late, _ = waiting.offer(HIGH, 1.0, 0.0, NOTHING_KNOWN)
    good, _ = waiting.offer(LOW, 9.0, 0.0, NOTHING_KNOWN)
    started, refused = waiting.take(0.7, needs(0.31))
    assert started == good
    assert [one.ticket for one in refused] == [late]


@pytest.mark.parametrize(("priority", "slack_s"), [(CRITICAL, 0.1), (HIGH, 0.4), (NORMAL, 0.4), (LOW, 0.4)])
def test_a_critical_request_is_begun_with_an_even_chance_and_any_other_with_a_good_one(
    priority: Priority, slack_s: float
) -> None:
    estimate = Estimate((Candidate("primary", Times(((1, 0.4),)), Times(((1, 0.1),))),))
    waiting = queue()
    ticket, refused = waiting.offer(priority, 1.0 + slack_s, 0.0, estimate)
    assert refused == []
    assert waiting.take(1.0, estimate, "primary") == (ticket, [])
    ticket, _ = waiting.offer(priority, 1.0 + slack_s, 0.0, estimate)
    assert [one.ticket for one in waiting.take(1.01, estimate, "primary")[1]] == [ticket]
    ticket, refused = waiting.offer(priority, 2.0 + slack_s, 2.01, estimate)
    assert [(one.ticket, one.reason) for one in refused] == [(ticket, "deadline")]


def test_every_tenth_start_goes_to_the_lowest_waiting_class() -> None:
    waiting = queue()
    fill(waiting, HIGH, 40)
    fill(waiting, LOW, 5)
    order = [ticket.priority for ticket, _ in (waiting.take(0.0, NOTHING_KNOWN) for _ in range(30)) if ticket]
    assert [i for i, priority in enumerate(order) if priority is LOW] == [9, 19, 29]


def test_the_turn_of_the_lowest_class_waits_for_critical_ones() -> None:
    waiting = queue()
    fill(waiting, CRITICAL, 15)
    fill(waiting, LOW, 2)
    order = [ticket.priority for ticket, _ in (waiting.take(0.0, NOTHING_KNOWN) for _ in range(17)) if ticket]
    assert order == [CRITICAL] * 15 + [LOW] * 2


def test_inside_a_class_the_newest_goes_first_once_the_oldest_would_wait_too_long() -> None:
    waiting, estimate = queue(), Estimate(service_s=0.5)
    first, second, third, fourth = (waiting.offer(NORMAL, 9.0, at, estimate)[0] for at in (0.0, 0.01, 0.02, 0.03))
    assert waiting.take(4.0, estimate)[0] == first  # five times half a second: half of the five that it has left
    assert waiting.take(5.1, estimate)[0] == fourth  # four times half a second, of 3.9
    assert waiting.take(5.1, estimate)[0] == second
    assert waiting.take(7.0, estimate)[0] == third


def test_a_refusal_explains_itself() -> None:
    waiting = queue(bound=1)
    fill(waiting, HIGH, 1)
    _, (refused,) = waiting.offer(HIGH, None, 0.0, Estimate(service_s=0.5))
    error = refused.error()
    assert type(error) is Overloaded
    assert error.facts == {"reason": "full", "retry_after_s": 1.0}
    assert refused.retry_after_s == 1.0
    assert str(error) == "high request refused: too many requests are waiting; come back in 1.0 s"


def test_without_a_crowd_the_oldest_goes_first_however_long_it_waited() -> None:
    waiting = AdmissionQueue(AdmissionSettings())
    tickets = [waiting.offer(NORMAL, 9.0, 0.0, NOTHING_KNOWN)[0] for _ in range(6)]
    assert waiting.take(5.0, NOTHING_KNOWN)[0] == tickets[5]  # six wait for one slot: a crowd
    assert waiting.take(5.0, NOTHING_KNOWN)[0] == tickets[0]


def test_low_starts_after_at_most_low_turn_others_for_each_low_before_it() -> None:
    """The bound of starvation, as a number: with a service time S and c slots, LOW number n waits 10 x n x S / c."""
    waiting = queue(bound=400)
    fill(waiting, HIGH, 200)
    low = fill(waiting, LOW, 5)
    started = [waiting.take(0.0, NOTHING_KNOWN)[0] for _ in range(60)]
    assert [started.index(ticket) + 1 for ticket in low] == [10, 20, 30, 40, 50]


def test_a_million_queued_cancels_cost_a_constant_time_each_and_leave_nothing() -> None:
    waiting = queue(bound=100)
    fill(waiting, LOW, 99)
    ticket, _ = waiting.offer(LOW, 9.0, 0.0, NOTHING_KNOWN)
    for _ in range(20_000):  # a sample; `make soak` has the million
        assert waiting.cancel(ticket)
        assert not waiting.cancel(ticket)
        ticket, _ = waiting.offer(LOW, 9.0, 0.0, NOTHING_KNOWN)
    assert len(waiting) == 100


@pytest.mark.parametrize("load", [2.0, 10.0])
def test_under_overload_the_important_are_served_and_the_capacity_is_used(load: float) -> None:
    trace = step(load, for_s=10.0)
    result = simulate(arrivals(trace, seed=7), trace, KenshoPolicy(AdmissionSettings()))
    assert result.goodput >= 0.95
    assert result.served(CRITICAL) >= 0.995
    assert result.late <= 0.01


def test_a_slow_engine_is_used_for_what_it_can_do_in_time_and_for_critical_requests_with_an_even_chance() -> None:
    trace = brownout(for_s=20.0)
    result = simulate(arrivals(trace, seed=7), trace, KenshoPolicy(AdmissionSettings()))
    assert result.goodput >= 0.7
    assert result.served(CRITICAL) >= 0.5
