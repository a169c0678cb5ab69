from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.resilience.estimate import ONE, EngineTimes, RecentTimes, Times, Work


def test_times_forget_so_that_one_slow_answer_cannot_refuse_everything_for_ever() -> None:
    times = RecentTimes()
    assert (times.p95(0.0), times.median(0.0), times.mean(0.0)) == (0.0, 0.0, 0.0)
    for i in range(20):
        times.add(float(i + 1), 0.0)
    assert (times.p95(1.0), times.median(1.0), times.mean(1.0)) == (19.0, 10.0, 10.5)
    assert (times.p95(60.0), times.median(60.0)) == (19.0, 10.0)
    assert times.median(61.0) == 0.0
    assert (times.p95(61.0), times.mean(61.0)) == (0.0, 0.0)


def test_of_few_times_the_median_counts_so_that_one_long_prompt_does_not() -> None:
    times = RecentTimes()
    for value in (0.1, 0.1, 9.0):
        times.add(value, 0.0)
    assert times.p95(0.0) == 0.1


def test_memory_is_bounded_and_only_the_latest_count() -> None:
    times = RecentTimes()
    for i in range(1000):
        times.add(float(i), i / 1000)
    assert times.p95(1.0) == 996.0  # the 61st of 936 ... 999
    assert times.median(1.0) == 967.0
    assert times.mean(1.0) == pytest.approx(967.5)


def test_three_outliers_of_sixty_four_do_not_move_the_estimate() -> None:
    times = RecentTimes()
    for i in range(64):
        times.add(1000.0 if i % 20 == 10 else 1.0, 0.0)
    assert times.p95(0.0) == 1.0


def test_an_engine_learns_prefill_by_size_and_steps_apart() -> None:
    seen = EngineTimes()
    for _ in range(30):
        seen.prefilled(10, 0.05, 0.0)
        seen.prefilled(200, 0.8, 0.0)
        for step_s in (0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.01, 0.03):
            seen.stepped(step_s, 0.0)
    times = seen.times(1.0)
    assert [times.needed_s(Work(ids)) for ids in (9, 16, 129, 256)] == [0.05, 0.05, 0.8, 0.8]
    assert times.needed_s(Work(10, steps=10)) == pytest.approx(0.25)
    assert seen.times(100.0).needed_s(Work(10, steps=10)) == 0.0


def test_a_size_that_was_not_measured_takes_no_less_than_a_smaller_one_and_no_more_is_said() -> None:
    times = Times(((16, 0.05), (256, 0.8)), step_s=0.5)
    assert [times.needed_s(Work(ids)) for ids in (1, 8, 17, 128, 257, 1 << 40)] == [0.0, 0.0, 0.05, 0.05, 0.8, 0.8]
    assert (Times().needed_s(ONE), Times(step_s=0.5).needed_s(ONE)) == (0.0, 0.0)


def test_half_of_the_times_are_no_longer_than_their_median_and_nearly_all_than_their_95th_percentile() -> None:
    seen = EngineTimes()
    for tenth in range(1, 31):
        seen.prefilled(1, tenth / 10, 0.0)
        for _ in range(32):
            seen.stepped(tenth / 100, 0.0)
    assert (seen.times(0.0).needed_s(ONE), seen.medians(0.0).needed_s(ONE)) == (2.9, 1.5)
    assert seen.medians(0.0).step_s == pytest.approx(0.15)
    assert seen.times(0.0).step_s == pytest.approx(0.29)


def test_times_are_made_anew_after_a_hundredth_of_a_second() -> None:
    seen = EngineTimes()
    assert seen.times(0.0).needed_s(ONE) == 0.0
    seen.prefilled(1, 0.5, 0.0)
    assert seen.times(0.009).needed_s(ONE) == seen.medians(0.009).needed_s(ONE) == 0.0
    assert seen.times(0.01).needed_s(ONE) == seen.medians(0.01).needed_s(ONE) == 0.5


def test_sizes_are_bounded_whatever_the_prompt() -> None:
    seen = EngineTimes()
    for ids in (0, 1, 2, 3, 1 << 15, 1 << 16, 1 << 40):
        seen.prefilled(ids, 0.1, 0.0)
    assert [ids for ids, _ in seen.times(0.0).prefill] == [1, 2, 4, 1 << 15]


def test_a_prefill_that_was_stopped_at_its_deadline_is_learnt_and_one_that_was_stopped_early_is_not() -> None:
    seen = EngineTimes()
    seen.stopped(100, 2.0, 0.0)
    learnt = seen.times(1.0)
    assert learnt.needed_s(Work(100)) == pytest.approx(2.1)  # another one with two seconds is not begun
    seen.stopped(100, 2.0, 1.0)
    seen.stopped(100, 0.5, 1.0)
    assert seen.times(2.0) == learnt
    seen.stopped(200, 1.0, 2.0)  # no longer than a smaller one takes
    assert seen.times(3.0) == learnt
    seen.stopped(100, 3.0, 3.0)
    seen.stopped(100, 3.0, 3.0)
    assert seen.medians(4.0).needed_s(Work(100)) == pytest.approx(3.15)


def test_steps_from_before_a_pause_are_forgotten_too() -> None:
    seen = EngineTimes()
    for _ in range(31):
        seen.stepped(9.0, 0.0)
    for _ in range(32):
        seen.stepped(0.01, 61.0)
    assert seen.times(61.0).step_s == pytest.approx(0.01)


def test_steps_of_a_minute_are_taken_together() -> None:
    seen = EngineTimes()
    for second in range(31):
        seen.stepped(0.01, float(second))
    assert seen.times(31.0).step_s == 0.0
    seen.stepped(0.33, 60.0)
    assert seen.times(60.0).step_s == pytest.approx(0.02)
    for second in range(32):
        seen.stepped(0.03, 61.0 + second)  # they begin a group of their own
    assert seen._steps.mean(100.0) == pytest.approx(0.025)


# --- nobody is refused for ever on an idle engine ---

STEP_S = 0.02


class IdleEngine:
    """Takes what it takes; one request at a time, each begun at once if the estimate lets it in, and cut at its
    deadline. `prefill_s` by size never falls."""

    def __init__(self, growth: list[float]) -> None:
        self.seen = EngineTimes()
        self.now_s = 0.0
        self.prefill_s = [sum(growth[: i + 1]) for i in range(len(growth))]
        self.slowness = 1.0

    def takes_s(self, ids: int) -> float:
        """Between the times of its size and the next, as a prompt of its length would."""
        size = max(0, ids - 1).bit_length()
        below, above = self.prefill_s[size], self.prefill_s[min(size + 1, len(self.prefill_s) - 1)]
        return self.slowness * (below + (above - below) * (ids / (1 << size) - 0.5))

    def ask(self, ids: int, steps: int, within_s: float, *, by_median: bool) -> bool:
        """Whether it was let in."""
        times = self.seen.medians(self.now_s) if by_median else self.seen.times(self.now_s)
        if times.needed_s(Work(ids, steps)) > within_s:
            return False
        first_s, step_s = self.takes_s(ids), STEP_S * self.slowness
        if first_s > within_s:
            self.now_s += within_s
            self.seen.stopped(ids, within_s, self.now_s)
            return True
        self.now_s += first_s
        self.seen.prefilled(ids, first_s, self.now_s)
        for _ in range(min(steps, int((within_s - first_s) / step_s))):
            self.now_s += step_s
            self.seen.stepped(step_s, self.now_s)
        return True


IDS = st.one_of(st.integers(1, 8), st.integers(1, 1 << 12))
REQUESTS = st.lists(
    st.tuples(IDS, st.sampled_from([0, 0, 1, 40]), st.floats(0.001, 50.0), st.booleans(), st.floats(0.0, 20.0)),
    min_size=1,
    max_size=60,
)


@settings(max_examples=80, deadline=None)
@given(
    growth=st.lists(st.sampled_from([0.0, 0.001, 0.1, 3.0]), min_size=14, max_size=14),
    others=REQUESTS,
    ids=IDS,
    steps=st.integers(0, 50),
    by_median=st.booleans(),
    repeat=st.integers(1, 4),
    every=st.integers(1, 20),
)
def test_who_has_the_time_is_never_refused_whatever_the_others_ask_for(
    growth: list[float], others: list[Any], ids: int, steps: int, by_median: bool, repeat: int, every: int
) -> None:
    engine = IdleEngine(growth)
    size = 1 << max(0, ids - 1).bit_length()
    enough_s = engine.takes_s(size) * 1.051 + STEP_S * steps * 1.001 + 0.001  # a prompt of the longest of its size
    for number, (*asked, is_critical, pause_s) in enumerate(others * repeat):
        engine.ask(*asked, by_median=is_critical)
        engine.now_s += pause_s
        assert number % every or engine.ask(ids, steps, enough_s, by_median=by_median)


@settings(max_examples=40, deadline=None)
@given(others=REQUESTS, ids=IDS, slowness=st.sampled_from([8.0, 1000.0]), by_median=st.booleans())
def test_after_a_slow_time_nobody_is_refused_for_longer_than_a_minute(
    others: list[Any], ids: int, slowness: float, by_median: bool
) -> None:
    engine = IdleEngine([0.01] * 14)
    engine.slowness = slowness
    for *asked, is_critical, pause_s in others:
        engine.ask(*asked, by_median=is_critical)
        engine.now_s += pause_s
    engine.slowness, better_s = 1.0, engine.now_s
    enough_s = engine.takes_s(1 << max(0, ids - 1).bit_length()) * 1.051 + 0.001
    for *asked, is_critical, _ in others * 3:
        engine.now_s += 1.0
        engine.ask(*asked, by_median=is_critical)
        assert engine.ask(ids, 0, enough_s, by_median=by_median) or engine.now_s <= better_s + 60.0
    engine.now_s = max(engine.now_s, better_s + 60.1)
    assert engine.ask(ids, 0, enough_s, by_median=by_median)
