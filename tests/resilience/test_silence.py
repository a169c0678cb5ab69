import random

import pytest

from kensho.resilience.silence import LEAST_S, Quantile, SilenceBudget


def test_before_anything_is_known_the_upper_bound_holds() -> None:
    budget = SilenceBudget()
    for _ in range(49):
        budget.gap(0.005)
    for _ in range(19):
        budget.first(0.1, 30)
    assert (budget.token_s(5.0), budget.first_token_s(30, 8.0)) == (5.0, 8.0)


@pytest.mark.parametrize(("gap_s", "budget_s"), [(0.005, LEAST_S), (0.1, 2.0), (0.2, 4.0), (3.0, 5.0)])
def test_it_is_twenty_times_the_p99_of_this_engines_gaps_within_bounds(gap_s: float, budget_s: float) -> None:
    budget = SilenceBudget()
    for _ in range(50):
        budget.gap(gap_s)
    assert budget.token_s(5.0) == pytest.approx(budget_s)


def test_before_the_first_token_it_grows_with_the_prompt() -> None:
    budget = SilenceBudget()
    for _ in range(20):
        budget.first(0.064, 48)  # 1 ms an id, 16 ids of base
    assert budget.first_token_s(84, 1e9) == pytest.approx(2.0)
    assert budget.first_token_s(984, 1e9) == pytest.approx(20.0)
    assert budget.first_token_s(984, 8.0) == 8.0
    assert budget.first_token_s(0, 8.0) == LEAST_S


def test_the_quantile_is_about_the_p99_and_follows_a_change() -> None:
    rng, quantile = random.Random(3), Quantile(50)
    numbers = [rng.lognormvariate(-5.0, 0.5) for _ in range(20_000)]
    for number in numbers:
        quantile.add(number)
    assert quantile.value == pytest.approx(sorted(numbers)[19_800], rel=0.35)
    for number in numbers:
        quantile.add(number * 10)
    assert quantile.value == pytest.approx(sorted(numbers)[19_800] * 10, rel=0.35)


def test_one_hiccup_in_the_warm_up_wears_off() -> None:
    budget = SilenceBudget()
    budget.gap(2.0)
    for _ in range(10_000):
        budget.gap(0.005)
    assert budget.token_s(5.0) == LEAST_S


def test_an_engine_that_held_ten_thousand_prompts_is_not_killed_over_one_that_it_must_compute() -> None:
    budget = SilenceBudget()
    for _ in range(10_000):
        budget.first(0.02, 1000)  # it held all but the last ids
        budget.gap(0.012)
    prefill_s = 2000 * 0.001
    assert budget.first_token_s(2000, 28.0) > prefill_s
    assert budget.first_token_s(30, 8.3) == LEAST_S
