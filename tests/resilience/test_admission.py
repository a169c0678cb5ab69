import heapq
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import ConfigError, DeadlineMissed, Overloaded
from kensho.resilience.admission import (
    AdmissionQueue,
    AdmissionSettings,
    Estimate,
    Level,
    Priority,
    Refused,
    ServiceTimes,
    Ticket,
    parse_priority,
)

NOTHING_KNOWN = Estimate()
CRITICAL, HIGH, NORMAL, LOW = Priority


def queue(**changes: Any) -> AdmissionQueue:
    return AdmissionQueue(AdmissionSettings(**changes))


def fill(waiting: AdmissionQueue, priority: Priority, times: int, now: float = 0.0) -> list[Ticket]:
    tickets = []
    for _ in range(times):
        ticket, refused = waiting.offer(priority, now + 1000.0, now, NOTHING_KNOWN)
        assert not refused
        tickets.append(ticket)
    return tickets


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
            started, refused = waiting.take(now, Estimate(first_token_s=first))
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
    started, refused = waiting.take(0.7, Estimate(first_token_s=0.31))
    assert started == good
    assert [one.ticket for one in refused] == [late]


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


def test_inside_a_class_the_newest_goes_first_once_the_oldest_waited_too_long() -> None:
    waiting = queue(lifo_after_s=0.1)
    first, second, third = (waiting.offer(NORMAL, 9.0, at, NOTHING_KNOWN)[0] for at in (0.0, 0.01, 0.02))
    assert waiting.take(0.05, NOTHING_KNOWN)[0] == first
    assert waiting.take(0.2, NOTHING_KNOWN)[0] == third
    assert waiting.take(0.2, NOTHING_KNOWN)[0] == second


def test_five_rejections_in_ten_seconds_pause_unimportant_work_only() -> None:
    waiting = queue(bound=2)
    fill(waiting, HIGH, 2)
    for at in range(5):
        assert waiting.level(at, NOTHING_KNOWN) is Level.NORMAL
        assert waiting.offer(HIGH, None, at, NOTHING_KNOWN)[1]
    assert waiting.level(5.0, NOTHING_KNOWN) is Level.SATURATED
    waiting.take(5.0, NOTHING_KNOWN)
    for priority, reasons in [(LOW, ["saturated"]), (NORMAL, ["saturated"]), (HIGH, [])]:
        assert [one.reason for one in waiting.offer(priority, None, 5.0, NOTHING_KNOWN)[1]] == reasons
    assert waiting.level(10.0, NOTHING_KNOWN) is not Level.SATURATED


def test_refusals_because_of_saturation_do_not_prolong_it() -> None:
    waiting = queue(bound=1)
    fill(waiting, HIGH, 1)
    for _ in range(5):
        waiting.offer(HIGH, None, 0.0, NOTHING_KNOWN)
    for tenth in range(1, 100):
        waiting.offer(LOW, None, tenth / 10, NOTHING_KNOWN)
    assert waiting.level(10.0, NOTHING_KNOWN) is not Level.SATURATED


def test_an_empty_queue_takes_anyone_even_when_saturated() -> None:
    waiting = queue(bound=1)
    fill(waiting, HIGH, 1)
    for _ in range(5):
        waiting.offer(HIGH, None, 0.0, NOTHING_KNOWN)
    waiting.take(0.0, NOTHING_KNOWN)
    assert waiting.level(0.0, NOTHING_KNOWN) is Level.SATURATED
    assert waiting.offer(LOW, None, 0.0, NOTHING_KNOWN)[1] == []


def test_long_waits_pause_low_work_after_a_second() -> None:
    waiting = queue()
    waiting.offer(NORMAL, 10.0, 0.0, NOTHING_KNOWN)
    assert waiting.level(2.1, NOTHING_KNOWN) is Level.NORMAL
    assert waiting.level(3.2, NOTHING_KNOWN) is Level.PRESSURED
    assert [one.reason for one in waiting.offer(LOW, None, 3.2, NOTHING_KNOWN)[1]] == ["pressured"]
    assert waiting.offer(NORMAL, None, 3.2, NOTHING_KNOWN)[1] == []


def test_a_refusal_explains_itself() -> None:
    waiting = queue(bound=1)
    fill(waiting, HIGH, 1)
    _, (refused,) = waiting.offer(HIGH, None, 0.0, Estimate(service_s=0.5))
    error = refused.error()
    assert type(error) is Overloaded
    assert error.facts["retry_after_s"] == refused.retry_after_s == 1.0
    assert str(error) == "high request refused: too many requests are waiting; come back in 1.0 s"


def test_priorities_are_words() -> None:
    assert [parse_priority(word) for word in ("critical", "HIGH", "Normal", "low")] == list(Priority)
    with pytest.raises(ConfigError):
        parse_priority("urgent")


@pytest.mark.parametrize("bad", [{"bound": 0}, {"lifo_after_s": 0.0}, {"critical_reserve": -1}, {"pressured_share": 0}])
def test_unusable_settings_are_refused_with_advice(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        AdmissionSettings(**bad)
    assert caught.value.advice


def test_service_times_forget_so_that_one_slow_answer_cannot_refuse_everything_for_ever() -> None:
    times = ServiceTimes(window_s=60.0)
    assert (times.p95_s(0.0), times.mean_s(0.0)) == (0.0, 0.0)
    for i in range(20):
        times.add(float(i + 1), 0.0)
    assert (times.p95_s(1.0), times.mean_s(1.0)) == (19.0, 10.5)
    assert times.p95_s(61.0) == 0.0


def simulate(load: float, seconds: float, seed: int) -> tuple[float, Counter[Priority], Counter[Priority]]:
    """4 slots x 100 ms log-normal service, exponential arrivals at `load` x capacity. Returns goodput as a share of
    the capacity, and by class how many were answered in time and how many came."""
    rng = random.Random(seed)
    waiting, now, free, busy_until = queue(), 0.0, 4, list[tuple[float, float, Ticket]]()
    times = ServiceTimes()
    came: Counter[Priority] = Counter()
    served: Counter[Priority] = Counter()
    good_s, next_arrival = 0.0, 0.0
    while now < seconds:
        now = min(next_arrival, busy_until[0][0] if busy_until else next_arrival)
        estimate = Estimate(times.p95_s(now), times.mean_s(now), 4)
        if busy_until and busy_until[0][0] <= now:
            _, service, ticket = heapq.heappop(busy_until)
            free += 1
            times.add(service, now)
            if now <= ticket.deadline_s:
                good_s += service
                served[ticket.priority] += ticket.arrived_s < seconds - 1.0
        else:
            next_arrival = now + rng.expovariate(load * 40.0)
            priority = rng.choices(list(Priority), weights=[5, 15, 50, 30])[0]
            came[priority] += now < seconds - 1.0  # the last second's answers come after the end
            waiting.offer(priority, now + (1.0, 1.0, 2.0, 5.0)[priority], now, estimate)
        while free:
            started, _ = waiting.take(now, estimate)
            if started is None:
                break
            free -= 1
            service = rng.lognormvariate(-2.3026 - 0.125, 0.5)
            heapq.heappush(busy_until, (now + service, service, started))
    return good_s / (seconds * 4), served, came


@pytest.mark.parametrize("load", [3.0, 10.0])
def test_under_overload_the_important_are_served_and_the_capacity_is_used(load: float) -> None:
    goodput, served, came = simulate(load, seconds=10.0, seed=7)
    assert goodput >= 0.93
    assert served[CRITICAL] >= 0.99 * came[CRITICAL]
