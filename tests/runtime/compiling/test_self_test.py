"""The self-test recognises a graph that answers as before and refuses one that does not."""

from collections.abc import Sequence

import numpy as np
import pytest

from kensho.base.errors import WrongNumbers
from kensho.runtime.compiling import self_test
from kensho.runtime.compiling.self_test import answer, check_session, follow, make_prompt, make_vector, relative_error


class _Counting:
    """Logits are a fixed function of the ids fed so far: a model small enough to reason about."""

    vocab_size = 50
    max_context = 100

    def __init__(self, noise: float = 0.0) -> None:
        self.ids: list[int] = []
        self._noise = noise

    def append(self, ids: Sequence[int]) -> np.ndarray:
        self.ids += ids
        logits = np.random.default_rng(sum(self.ids)).standard_normal(self.vocab_size).astype(np.float32)
        return logits + np.float32(self._noise) * np.cos(np.arange(self.vocab_size, dtype=np.float32))

    def rewind(self, position: int) -> None:
        del self.ids[position:]


def _vector() -> self_test.SelfTestVector:
    session = _Counting()
    prompt = make_prompt(session.vocab_size, 64)
    return make_vector(prompt, *answer(session, prompt))


def test_the_same_answers_pass_and_leave_the_session_empty() -> None:
    session = _Counting(noise=0.01)
    check_session(session, _vector())
    assert session.ids == []


@pytest.mark.parametrize("noise", [1.0, -1.0, float("nan")])
def test_other_answers_are_refused(noise: float) -> None:
    with pytest.raises(WrongNumbers, match="self-test expected token"):
        check_session(_Counting(noise=noise), _vector())


def test_a_better_token_than_the_recorded_one_is_refused() -> None:
    class Louder(_Counting):
        def append(self, ids: Sequence[int]) -> np.ndarray:
            logits = super().append(ids)
            logits[int(logits.argmin())] = logits.max() + 5
            return logits

    with pytest.raises(WrongNumbers):
        check_session(Louder(), _vector())


def test_following_a_sessions_own_answer_gives_its_logits() -> None:
    session = _Counting()
    ids, logits = answer(session, [1, 2, 3])
    assert (follow(session, [1, 2, 3], ids) == logits).all()
    assert list(ids) == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("positions", [1, 2, 5, 64])
def test_the_test_fits_into_any_context(positions: int) -> None:
    prompt = make_prompt(7, positions)
    session = _Counting()
    session.max_context = positions
    ids, _ = answer(session, prompt)
    assert all(0 <= token < 7 for token in prompt)
    assert 1 <= len(prompt) + len(ids) - 1 <= max(positions, 1)


def test_the_error_ignores_what_softmax_ignores() -> None:
    exact = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    assert relative_error(exact + np.float32(7), exact) < 1e-5
    assert relative_error(exact * np.float32(1.1), exact) == pytest.approx(0.1, abs=1e-4)
    assert relative_error(exact, np.zeros_like(exact)) > 1e6
