import pytest

from kensho.resilience.estimate import ONE, AnswerLengths, EngineTimes, RecentTimes, Times, Work


def test_times_forget_so_that_one_slow_answer_cannot_refuse_everything_for_ever() -> None:
    times = RecentTimes()
    assert (times.p95(0.0), times.median(0.0), times.mean(0.0)) == (0.0, 0.0, 0.0)
    for i in range(20):
        times.add(float(i + 1), 0.0)
    assert (times.p95(1.0), times.median(1.0), times.mean(1.0)) == (19.0, 10.0, 10.5)
    assert (times.p95(60.0), times.median(60.0)) == (19.0, 10.0)
    assert times.median(61.0) == 0.0
    assert (times.p95(61.0), times.mean(61.0)) == (0.0, 0.0)


def test_of_forgotten_times_nothing_stays_in_the_mean() -> None:
    times = RecentTimes()
    for value in (0.1, 0.2, 0.3):
        times.add(value, 0.0)
    assert times.mean(100.0) == 0.0
    times.add(0.0, 100.0)
    assert times.mean(100.0) == 0.0


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


def test_a_size_that_was_forgotten_is_one_that_was_not_measured() -> None:
    seen = EngineTimes()
    seen.prefilled(16, 0.8, 0.0)
    seen.prefilled(4, 0.1, 61.0)
    assert seen.times(61.0).needed_s(Work(16)) == 0.1


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
    for _ in range(3):
        seen.stopped(100, 0.0, 0.0)
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


# --- lengths of answers ---


def test_the_length_of_a_whole_answer_is_a_guess_until_one_with_such_a_limit_has_ended() -> None:
    lengths = AnswerLengths()
    assert lengths.work(5, 300, 0, 0.0, by_median=False) == Work(5, 299, is_guess=True)
    lengths.ended(512, 40, 0.0)
    assert lengths.work(5, 257, 0, 1.0, by_median=False) == Work(5, 39)
    assert lengths.work(5, 300, 10, 1.0, by_median=False) == Work(15, 29)
    assert lengths.work(5, 300, 60, 1.0, by_median=False) == Work(65, 0)
    for other in (256, 513):
        assert lengths.work(5, other, 0, 1.0, by_median=False).is_guess
    assert lengths.work(5, 300, 0, 61.0, by_median=False).is_guess


def test_no_answer_is_longer_than_it_may_be() -> None:
    lengths = AnswerLengths()
    lengths.ended(128, 120, 0.0)
    assert lengths.work(1, 100, 0, 0.0, by_median=False) == Work(1, 99)
    assert lengths.work(1, 100, 100, 0.0, by_median=False) == Work(101, 0)


def test_half_of_the_answers_are_no_longer_than_the_median() -> None:
    lengths = AnswerLengths()
    for tokens in range(1, 31):
        lengths.ended(32, tokens, 0.0)
    assert [lengths.work(1, 32, 0, 0.0, by_median=by).steps for by in (True, False)] == [14, 28]


def test_an_answer_that_was_stopped_counts_if_it_was_long_already() -> None:
    lengths = AnswerLengths()
    lengths.stopped(1000, 0, 0.0)
    assert lengths.work(1, 1000, 0, 0.0, by_median=False).is_guess
    lengths.stopped(1000, 100, 0.0)
    assert lengths.work(1, 1000, 0, 0.0, by_median=True) == Work(1, 104)
    lengths.stopped(1000, 105, 0.0)
    assert lengths.work(1, 1000, 0, 0.0, by_median=True) == Work(1, 104)
    lengths.stopped(1000, 400, 0.0)
    lengths.stopped(1000, 400, 0.0)
    assert lengths.work(1, 1000, 0, 0.0, by_median=True) == Work(1, 419)


def test_what_is_proven_of_work_is_all_but_its_guess() -> None:
    assert Work(9, 30, is_guess=True).proven() == Work(9)
    assert Work(9, 30).proven() == Work(9, 30)
