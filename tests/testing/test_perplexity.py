"""Perplexity is what its definition says, and a worse idea of the text shows."""

from collections.abc import Sequence

import numpy as np
import pytest

from kensho.testing.perplexity import Text, compare


class _Bigram:
    """Gives the token after the last one, plus one, probability p, and the others the rest."""

    def __init__(self, p: float) -> None:
        self.ids: list[int] = []
        self._p = p

    def append(self, ids: Sequence[int]) -> np.ndarray:
        self.ids += ids
        probabilities = np.full(10, (1 - self._p) / 9)
        probabilities[(self.ids[-1] + 1) % 10] = self._p
        return np.log(probabilities).astype(np.float32) + np.float32(5)

    def rewind(self, position: int) -> None:
        del self.ids[position:]


def test_perplexity_is_the_inverse_of_the_probability_that_was_given() -> None:
    exact, other = _Bigram(0.5), _Bigram(0.25)
    found = compare(exact, other, [Text([0, 1, 2, 3]), Text([7, 8])])
    assert found.tokens == 4
    assert found.exact_perplexity == pytest.approx(2.0, rel=1e-6)
    assert found.perplexity == pytest.approx(4.0, rel=1e-6)
    assert found.excess == pytest.approx(1.0, rel=1e-6)
    assert found.agreement == 1.0
    assert exact.ids == other.ids == []


def test_what_is_given_is_not_predicted() -> None:
    surprised = compare(_Bigram(0.5), _Bigram(0.5), [Text([3, 9, 4, 5])])
    given = compare(_Bigram(0.5), _Bigram(0.5), [Text([3, 9, 4, 5], given=3)])
    assert (surprised.tokens, given.tokens) == (3, 1)
    assert given.exact_perplexity == pytest.approx(2.0, rel=1e-6)
    assert surprised.exact_perplexity > 2.5


def test_another_best_token_counts_against_agreement() -> None:
    found = compare(_Bigram(0.5), _Bigram(0.01), [Text([0, 1, 2])])
    assert found.agreement == 0.0
