import pytest

from kensho.resilience.estimate import EngineTimes, RecentTimes, Work


def test_times_forget_so_that_one_slow_answer_cannot_refuse_everything_for_ever() -> None:
    times = RecentTimes()
    assert (times.p95(0.0), times.mean(0.0)) == (0.0, 0.0)
    for i in range(20):
        times.add(float(i + 1), 0.0)
    assert (times.p95(1.0), times.mean(1.0)) == (19.0, 10.5)
    assert times.p95(60.0) == 19.0
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
    assert [times.needed_s(Work(ids)) for ids in (1, 16, 17, 256, 512)] == [0.05, 0.05, 0.8, 0.8, 1.6]
    assert times.needed_s(Work(10, steps=10)) == pytest.approx(0.25)
    assert seen.times(100.0).needed_s(Work(10, steps=10)) == 0.0


def test_sizes_are_bounded_whatever_the_prompt() -> None:
    seen = EngineTimes()
    for ids in (0, 1, 2, 3, 1 << 15, 1 << 16, 1 << 40):
        seen.prefilled(ids, 0.1, 0.0)
    assert [ids for ids, _ in seen.times(0.0).prefill] == [1, 2, 4, 1 << 15]
