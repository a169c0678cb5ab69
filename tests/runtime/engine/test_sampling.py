import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kensho.base.errors import WrongNumbers
from kensho.base.inference import Sampling
from kensho.runtime.engine.sampling import choose, uniform

LOGITS = arrays(np.float32, st.integers(1, 50), elements=st.floats(-30, 30, width=32))


@settings(max_examples=30, deadline=None)
@given(LOGITS, st.integers(0, 1000))
def test_greedy_is_the_first_of_the_largest(logits: np.ndarray, position: int) -> None:
    chosen = choose(logits, position, Sampling())
    assert logits[chosen] == logits.max()
    assert not (logits[:chosen] == logits.max()).any()


@settings(max_examples=30, deadline=None)
@given(LOGITS, st.integers(0, 1000), st.floats(0.01, 5), st.integers(-(2**63), 2**63 - 1))
def test_a_draw_depends_on_seed_and_position_alone(logits: np.ndarray, position: int, t: float, seed: int) -> None:
    sampling = Sampling(temperature=t, seed=seed)
    before = logits.copy()
    first = choose(logits, position, sampling)
    choose(logits[::-1].copy(), position + 1, sampling)  # another stream in between changes nothing
    assert 0 <= choose(logits, position, sampling) == first < len(logits)
    assert (logits == before).all()


def test_draws_follow_the_probabilities() -> None:
    wanted = np.array([0.5, 0.25, 0.25, 0.0])
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(wanted), -1e30).astype(np.float32)
    draws = [choose(logits, position, Sampling(temperature=1, seed=3)) for position in range(4000)]
    # four standard deviations of a count of 4000
    assert np.abs(np.bincount(draws, minlength=4) - 4000 * wanted).max() < 4 * np.sqrt(4000 * 0.25)
    assert 3 not in draws


def test_a_low_temperature_approaches_greedy() -> None:
    logits = np.array([1.0, 3.0, 2.9], np.float32)
    assert {choose(logits, position, Sampling(temperature=0.01)) for position in range(200)} == {1}


def test_the_random_numbers_are_the_same_for_ever() -> None:
    # A stream that moves between two versions of Kensho must not change: these values are a contract.
    assert [uniform(0, 0), uniform(0, 1), uniform(1, 0), uniform(-1, 7)] == RECORDED


@settings(max_examples=30, deadline=None)
@given(LOGITS, st.sampled_from([np.nan, np.inf, -np.inf]), st.floats(0, 5), st.data())
def test_numbers_that_are_not_finite_are_never_answered(
    logits: np.ndarray, bad: float, t: float, data: st.DataObject
) -> None:
    logits[data.draw(st.integers(0, len(logits) - 1))] = bad
    with pytest.raises(WrongNumbers):
        choose(logits, 5, Sampling(temperature=t))


RECORDED = [0.9991933483455893, 0.9036158404426595, 0.7587846386208447, 0.7660264401772117]
