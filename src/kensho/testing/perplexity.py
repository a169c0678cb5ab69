"""How far one session's idea of a text is from another's: perplexity and best tokens, token by token.

    comparison = compare(exact_session, int8_session, [Text(ids, given=12)])
    comparison.excess                     # 0.004: int8 is 0.4 % more surprised by what follows the 12 tokens

A random model cannot tell: its perplexity is that of a coin whatever one does to it. Use a trained one, and text that
it was not trained on.
"""

from collections.abc import Iterable, Sequence
from math import exp
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kensho.base.structs import Struct


class Steps(Protocol):
    """What is needed of `runtime.engine.session.Session`."""

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]: ...

    def rewind(self, position: int) -> None: ...


class Text(Struct):
    """Token ids, of which the first `given` (at least one) are not predicted."""

    ids: Sequence[int]
    given: int = 1


class Comparison(Struct):
    """Of `tokens` predictions; perplexity is exp of the mean negative log probability of the token that came."""

    tokens: int
    exact_perplexity: float
    perplexity: float
    agreement: float
    """Part of the positions where both have the same best token."""

    @property
    def excess(self) -> float:
        """By which part the perplexity is higher than the exact one; negative when it is lower."""
        return self.perplexity / self.exact_perplexity - 1


def compare(exact: Steps, other: Steps, texts: Iterable[Text]) -> Comparison:
    """Both sessions read every text, what is predicted one token after the other. Leaves them empty."""
    surprise, other_surprise, agreed, tokens = 0.0, 0.0, 0, 0
    for text in texts:
        for session in (exact, other):
            session.rewind(0)
        new = text.ids[: text.given]
        for following in text.ids[text.given :]:
            logits, other_logits = exact.append(new), other.append(new)
            new = [following]
            surprise += _surprise(logits, following)
            other_surprise += _surprise(other_logits, following)
            agreed += int(logits.argmax() == other_logits.argmax())
            tokens += 1
    for session in (exact, other):
        session.rewind(0)
    return Comparison(tokens, exp(surprise / tokens), exp(other_surprise / tokens), agreed / tokens)


def _surprise(logits: NDArray[np.float32], token: int) -> float:
    """Negative log probability, in float64: sums over thousands of tokens are compared to a percent of a percent."""
    wide = logits.astype(np.float64)
    largest = wide.max()
    return float(largest + np.log(np.exp(wide - largest).sum()) - wide[token])
