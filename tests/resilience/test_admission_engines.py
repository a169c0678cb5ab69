"""Who goes to which engine, who comes back from one, and for whom one is taken from somebody."""

import pytest
from queueing import CRITICAL, HIGH, LOW, NORMAL, NOTHING_KNOWN, fill, queue, takes

from kensho.resilience.admission import Candidate, Estimate, Priority, Ticket
from kensho.resilience.estimate import Times, Work
from kensho.resilience.pressure import Level


def test_a_request_that_no_engine_can_do_in_time_here_is_left_to_the_quicker_one() -> None:
    waiting = queue()
    estimate = Estimate((takes("gpu", 0.1), takes("cpu", 5.0)), slots=2)
    urgent, _ = waiting.offer(CRITICAL, 1.0, 0.0, estimate)
    patient, _ = waiting.offer(LOW, 60.0, 0.0, estimate)
    assert waiting.take(0.0, estimate, "cpu") == (patient, [])
    assert waiting.take(0.0, estimate, "cpu") == (None, [])
    assert waiting.take(0.0, estimate, "gpu") == (urgent, [])


@pytest.mark.parametrize(("ahead", "is_found"), [(1, True), (7, True), (8, False)])
def test_those_who_are_too_much_for_a_slow_engine_are_not_in_the_way_of_their_class(ahead: int, is_found: bool) -> None:
    """As many of them as are looked at."""
    waiting = queue(lifo_per_slot=100)
    estimate = Estimate((takes("gpu", 0.1), takes("cpu", 5.0)), slots=2)
    for _ in range(ahead):
        waiting.offer(NORMAL, 1.0, 0.0, estimate)
    patient, _ = waiting.offer(NORMAL, 60.0, 0.0, estimate)
    other, _ = waiting.offer(LOW, 60.0, 0.0, estimate)
    assert waiting.take(0.0, estimate, "cpu") == (patient if is_found else other, [])
    assert len(waiting) == ahead + 1


def test_nobody_is_refused_while_an_engine_is_idle_that_can_do_it_in_time() -> None:
    """The queue is full, and SATURATED: of those who wait for the other engine."""
    estimate = Estimate((takes("gpu", 0.1), takes("cpu", 5.0)), service_s=5.0, slots=2, idle=("cpu",))
    waiting = queue(bound=2)
    named = [waiting.offer(HIGH, None, 0.0, estimate, engine="gpu")[1] for _ in range(7)]
    assert [len(refused) for refused in named] == [0, 0, 1, 1, 1, 1, 1]
    assert waiting.level(0.0) is Level.SATURATED
    for priority in (LOW, NORMAL):
        ticket, refused = waiting.offer(priority, 5.0, 0.0, estimate)
        assert refused == []
        assert waiting.take(0.0, estimate, "cpu") == (ticket, [])
        ticket, refused = waiting.offer(priority, 4.9, 0.0, estimate)
        assert [(one.ticket, one.reason) for one in refused] == [(ticket, "saturated")]
        assert len(waiting.offer(priority, 5.0, 0.0, estimate, engine="gpu")[1]) == 1


def test_what_a_request_needs_grows_with_its_prompt_and_its_steps() -> None:
    times = Times(((64, 0.1), (256, 0.5)), step_s=0.02)
    assert times.needed_s(Work(64)) == 0.1
    assert times.needed_s(Work(129)) == 0.5
    assert times.needed_s(Work(64, steps=50)) == pytest.approx(1.1)
    assert Times().needed_s(Work(10_000, steps=10_000)) == 0.0


def test_a_request_that_was_begun_goes_before_its_class_and_is_never_evicted() -> None:
    waiting = queue(bound=2)
    first, _ = waiting.offer(LOW, 9.0, 0.0, NOTHING_KNOWN)
    assert waiting.take(0.0, NOTHING_KNOWN)[0] == first
    fill(waiting, LOW, 2)
    again = waiting.resume(first, float("inf"), Work(5), 1.0)
    evicted = [one.ticket for _ in range(2) for one in waiting.offer(NORMAL, 9.0, 1.0, NOTHING_KNOWN)[1]]
    assert again not in evicted
    assert [waiting.take(1.0, NOTHING_KNOWN)[0] for _ in range(3)][2] == again


def test_who_may_use_one_engine_only_goes_back_to_it_after_it_failed() -> None:
    """Found by the soak: it waited for ever."""
    estimate = Estimate((takes("gpu", 0.0), takes("cpu", 0.0)), slots=2)
    waiting = queue()
    waiting.offer(HIGH, 9.0, 0.0, estimate, engine="cpu")
    taken, _ = waiting.take(0.0, estimate, "cpu")
    assert taken is not None
    again = waiting.resume(taken, float("inf"), Work(), 1.0, avoids="cpu")
    assert waiting.take(1.0, estimate, "gpu") == (None, [])
    assert waiting.take(1.0, estimate, "cpu") == (again, [])


def test_a_ticket_says_whose_it_is_also_when_it_waits_again() -> None:
    waiting = queue()
    assert waiting.offer(LOW, None, 0.0, NOTHING_KNOWN)[0].request == 0
    ticket, _ = waiting.offer(HIGH, None, 0.0, NOTHING_KNOWN, request=7)
    again = waiting.resume(ticket, 9.0, Work(), 1.0)
    assert (ticket.request, again.request) == (7, 7)
    assert again.number > ticket.number


def test_who_stopped_by_itself_interrupts_nobody_but_critical_ones_always_do() -> None:
    waiting = queue()
    begun = [waiting.offer(priority, 9.0, 0.0, NOTHING_KNOWN)[0] for priority in Priority]
    for _ in begun:
        waiting.take(0.0, NOTHING_KNOWN)
    lost = [waiting.resume(ticket, 9.0, Work(), 1.0, is_urgent=True) for ticket in begun]
    assert list(waiting.urgent()) == lost[:3]
    for ticket in lost:
        waiting.cancel(ticket)
    stopped = [waiting.resume(ticket, 9.0, Work(), 1.0) for ticket in begun]
    assert list(waiting.urgent()) == stopped[:1]


def test_nobody_is_interrupted_for_one_who_would_not_get_the_engine() -> None:
    waiting = queue()
    ticket, _ = waiting.offer(NORMAL, 9.0, 0.0, NOTHING_KNOWN)
    waiting.take(0.0, NOTHING_KNOWN)
    lost = waiting.resume(ticket, 9.0, Work(), 1.0, is_urgent=True)
    fill(waiting, NORMAL, 1)
    assert list(waiting.urgent()) == [lost]
    fill(waiting, HIGH, 1)
    assert list(waiting.urgent()) == []


def test_an_engine_is_held_as_long_as_the_work_takes_or_a_stream_of_unknown_length_usually_does() -> None:
    gpu, cpu = Times(((1, 0.5), (8, 1.0)), step_s=0.1), Times(((1, 3.0),), step_s=1.0)
    estimate = Estimate((Candidate("gpu", gpu, Times()), Candidate("cpu", cpu, Times())), service_p95_s=2.0)

    def holds_s(work: Work, engine: str) -> float:
        return estimate.holds_s(Ticket(0, CRITICAL, 0.0, 9.0, work), engine)

    assert (holds_s(Work(8), "gpu"), holds_s(Work(8), "cpu"), holds_s(Work(8), "npu")) == (2.0, 3.0, 2.0)
    assert (holds_s(Work(8, 5), "gpu"), holds_s(Work(8, 5), "cpu"), holds_s(Work(8, 5), "npu")) == (1.5, 8.0, 0.0)
    assert Estimate().holds_s(Ticket(0, LOW, 0.0, 9.0), "gpu") == 0.0
