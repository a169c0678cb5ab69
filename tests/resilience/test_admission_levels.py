"""PRESSURED and SATURATED: what makes them, whom they refuse, when they end."""

import pytest
from queueing import HIGH, LOW, NORMAL, NOTHING_KNOWN, fill, needs, queue

from kensho.resilience.admission import Estimate
from kensho.resilience.pressure import Level, Pressure


def test_five_rejections_in_ten_seconds_pause_unimportant_work_only() -> None:
    waiting = queue(bound=2)
    fill(waiting, HIGH, 2)
    for at in range(5):
        assert waiting.level(at) is Level.NORMAL
        assert waiting.offer(HIGH, None, at, NOTHING_KNOWN)[1]
    assert waiting.level(5.0) is Level.SATURATED
    waiting.take(5.0, NOTHING_KNOWN)
    for priority, reasons in [(LOW, ["saturated"]), (NORMAL, ["saturated"]), (HIGH, [])]:
        assert [one.reason for one in waiting.offer(priority, 15.0, 5.0, Estimate(service_s=3.0))[1]] == reasons
    assert waiting.level(10.0) is not Level.SATURATED


@pytest.mark.parametrize(
    ("within_s", "level"), [(None, Level.SATURATED), (10.0, Level.SATURATED), (9.9, Level.NORMAL), (-1.0, Level.NORMAL)]
)
def test_refusals_at_the_door_saturate_unless_the_client_chose_to_allow_less_than_is_usual(
    within_s: float | None, level: Level
) -> None:
    waiting = queue()
    for _ in range(5):
        assert waiting.level(1.0) is Level.NORMAL
        deadline_s = None if within_s is None else 1.0 + within_s
        assert [one.reason for one in waiting.offer(HIGH, deadline_s, 1.0, needs(10.1))[1]] == ["deadline"]
    assert waiting.level(1.0) is level


def test_a_deadline_that_is_no_number_is_refused_and_saturates_nothing() -> None:
    waiting = queue()
    for _ in range(9):
        assert [one.reason for one in waiting.offer(HIGH, float("nan"), 1.0, NOTHING_KNOWN)[1]] == ["deadline"]
    assert waiting.level(1.0) is Level.NORMAL


def test_requests_whose_time_passes_in_the_queue_saturate() -> None:
    waiting = queue()
    for _ in range(5):
        waiting.offer(HIGH, 2.0, 1.0, NOTHING_KNOWN)
    assert len(waiting.take(3.0, NOTHING_KNOWN)[1]) == 5
    assert waiting.level(3.0) is Level.SATURATED


def test_refusals_because_of_saturation_do_not_prolong_it() -> None:
    waiting = queue(bound=1)
    fill(waiting, HIGH, 1)
    for _ in range(5):
        waiting.offer(HIGH, None, 0.0, NOTHING_KNOWN)
    for tenth in range(1, 100):
        (refused,) = waiting.offer(LOW, tenth / 10 + 1.5, tenth / 10, NOTHING_KNOWN)[1]
        assert refused.reason == "saturated"
    assert waiting.level(10.0) is not Level.SATURATED


def test_who_would_not_wait_long_is_taken_even_when_saturated() -> None:
    waiting = queue(bound=3)
    fill(waiting, HIGH, 3)
    for _ in range(5):
        waiting.offer(HIGH, None, 0.0, NOTHING_KNOWN)
    waiting.take(0.0, NOTHING_KNOWN)
    assert waiting.level(0.0) is Level.SATURATED
    assert waiting.offer(LOW, 60.0, 0.0, Estimate(service_s=10.0))[1] == []


def test_an_empty_queue_takes_anyone_even_when_saturated() -> None:
    waiting = queue(bound=1)
    fill(waiting, HIGH, 1)
    for _ in range(5):
        waiting.offer(HIGH, None, 0.0, NOTHING_KNOWN)
    waiting.take(0.0, NOTHING_KNOWN)
    assert waiting.level(0.0) is Level.SATURATED
    assert waiting.offer(LOW, None, 0.0, NOTHING_KNOWN)[1] == []


def test_long_waits_pause_low_work_after_a_second() -> None:
    waiting = queue()
    waiting.offer(NORMAL, 10.0, 0.0, NOTHING_KNOWN)
    waiting.look(2.1, NOTHING_KNOWN)
    assert waiting.level(2.1) is Level.NORMAL
    assert waiting.level(3.2) is Level.PRESSURED
    assert [one.reason for one in waiting.offer(LOW, 6.2, 3.2, NOTHING_KNOWN)[1]] == ["pressured"]
    assert waiting.offer(LOW, 9.2, 3.2, NOTHING_KNOWN)[1] == []
    assert waiting.offer(NORMAL, 6.2, 3.2, NOTHING_KNOWN)[1] == []


def test_a_queue_is_slow_once_more_than_the_share_is_used_and_is_looked_at_every_tenth_of_a_second() -> None:
    pressure = Pressure(rejections=5, window_s=10.0, share=0.5, after_s=1.0)
    looks: list[float] = []

    def look(now_s: float, used: float) -> Level:
        def shares() -> list[float]:
            looks.append(now_s)
            return [used]

        pressure.look(now_s, shares)
        return pressure.level(now_s)

    assert look(0.0, 0.5) is Level.NORMAL
    assert look(0.0625, 0.75) is Level.NORMAL
    assert look(0.1, 0.75) is Level.NORMAL
    assert look(1.125, 0.75) is Level.PRESSURED
    assert look(2.0, 0.5) is Level.NORMAL
    assert looks == [0.0, 0.1, 1.125, 2.0]
