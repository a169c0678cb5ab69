import pytest

from kensho.base.structs import replace
from kensho.resilience.admission import Priority
from kensho.testing.load import step
from kensho.testing.play import TOKEN_S, Figures, Played, p99, play_virtual, why_missed

CRITICAL, HIGH, LOW = Priority.CRITICAL, Priority.HIGH, Priority.LOW
ANSWERED = Played(CRITICAL, 1.0, 2.0, "ok", 10, 1.2, 1.5, 1.5)


@pytest.mark.parametrize(
    ("played", "why"),
    [
        (replace(ANSWERED, done_s=1.9, ended_s=2.1), "late on the way back"),
        (replace(ANSWERED, done_s=2.1, ended_s=2.1), "late"),
        (replace(ANSWERED, outcome="cut", first_s=1.5, done_s=2.0), "cut at its deadline, begun after 0.5 of its time"),
        (replace(ANSWERED, outcome="deadline", pauses=2), "interrupted and then refused: deadline"),
        (replace(ANSWERED, outcome="full", done_s=1.0), "refused at once: full, 0 other CRITICAL begun then"),
        (replace(ANSWERED, outcome="full", done_s=1.7, rivals=2), "refused after 0.7 of its time: full, 2 other"),
    ],
)
def test_why_a_request_was_not_answered_in_time(played: Played, why: str) -> None:
    assert not played.is_in_time
    assert why_missed(played).startswith(why)


def test_work_counts_where_it_ended_and_requests_where_they_came() -> None:
    before = replace(ANSWERED, came_s=-0.5, ended_s=0.5)
    late = replace(ANSWERED, priority=HIGH, outcome="cut", tokens=5, ended_s=2.0)
    after = replace(ANSWERED, came_s=9.5, ended_s=10.5, deadline_s=11.0)
    figures = Figures([before, late, after], 0.0, 10.0)
    assert figures.good_tokens == 10
    assert figures.late == pytest.approx(1 / 3)
    assert figures.late_for() == {"HIGH, cut at its deadline": 5}
    assert (figures.served(CRITICAL), figures.served(HIGH), figures.served(LOW)) == (1.0, 0.0, 1.0)
    assert figures.p99_s(CRITICAL) == 1.0
    assert list(figures.missed(HIGH)) == [
        "cut at its deadline, begun after 0.2 of its time, 0 other CRITICAL begun then"
    ]


def test_the_p99_of_nothing_is_nothing() -> None:
    assert p99([]) == 0.0
    assert p99(float(number) for number in range(101)) == 99.0


@pytest.mark.real
@pytest.mark.parametrize("slots", [1, 2])
def test_under_overload_critical_requests_wait_as_if_nobody_else_were_there(slots: int) -> None:
    """The bars of issue 6 for the real scheduler, on engines whose time is virtual; the floor is the same trace with
    its CRITICAL requests alone. `bench/overload.py` has the long form."""
    trace = step(10.0, slots=slots, for_s=20.0)
    figures = Figures(play_virtual(trace, seed=1), trace.begins_s, trace.ends_s)
    floor = Figures(play_virtual(trace, seed=1, only=CRITICAL), trace.begins_s, trace.ends_s)
    assert figures.good_tokens * TOKEN_S / (20.0 * slots) >= 0.90
    assert figures.served(CRITICAL) >= 0.995 * floor.served(CRITICAL)
    assert figures.p99_s(CRITICAL) <= 1.2 * floor.p99_s(CRITICAL)
    assert len(floor.came) == len(figures.of(CRITICAL)) > 50 * slots


def test_the_same_seed_is_played_the_same_way() -> None:
    trace = step(2.0, slots=1, for_s=2.0)
    assert play_virtual(trace, seed=3) == play_virtual(trace, seed=3)
