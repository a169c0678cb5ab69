"""Run a fixed sequence through a session: to choose the form of a graph, and to recognise the graph again later.

Two questions. When compiling: does the int8 graph, on this CPU, answer like the exact one (`relative_error` <=
`MAX_ERROR`)? Afterwards: does it still answer what it answered then? The compiler asks that of the files it has written
(`check_session`, with the logits); the first engine after each boot of the machine, and a circuit's canary, are asked
for the same ids.
The prompt is one prefill of several rows and then single rows, because those take different kernels.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import WrongNumbers
from kensho.runtime.cache.header import SelfTestVector

_PROMPT_TOKENS = 16
_STEPS = 4
MAX_ERROR = 0.3
"""Bound of `relative_error`: a guess at five times the worst of int8 per channel. Measured: 0.03 for the tiny and the
demonstration model, 0.064 for random weights of the 270M shape (0.093 there for transformers' own bf16)."""
_TOLERANCE = 0.1
"""Part of the logits' standard deviation by which two sessions over the same file may differ. Rounding flips between
differently cut prompts were measured at 0.09 (design notes); the same cut gives the same bits."""


class Steps(Protocol):
    """What is needed of `session.Session`."""

    vocab_size: int
    max_context: int

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]: ...

    def rewind(self, position: int) -> None: ...


def make_prompt(vocab_size: int, max_positions: int) -> tuple[int, ...]:
    """Ids spread over the vocabulary, the same for every model of this size."""
    count = max(1, min(_PROMPT_TOKENS, max_positions - _STEPS + 1))
    return tuple((2 + index * 7919) % vocab_size for index in range(count))


def tokens_needed(prompt: Sequence[int]) -> int:
    """The context that the test takes."""
    return len(prompt) + _STEPS - 1


def answer(session: Steps, prompt: Sequence[int]) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    """(greedy ids, their logits as rows) after `prompt`. Leaves the session empty."""
    ids: list[int] = []
    rows = []
    new: Sequence[int] = prompt
    for _ in range(min(_STEPS, session.max_context - len(prompt) + 1)):
        rows.append(session.append(new))
        ids.append(int(rows[-1].argmax()))
        new = ids[-1:]
    session.rewind(0)
    return tuple(ids), np.stack(rows)


def follow(session: Steps, prompt: Sequence[int], ids: Sequence[int]) -> NDArray[np.float32]:
    """The logits, as rows, of a session that is made to say `ids` after `prompt`. Leaves the session empty."""
    rows = [session.append(prompt), *(session.append([token]) for token in ids[:-1])]
    session.rewind(0)
    return np.stack(rows)


def relative_error(logits: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """L2 norm of the difference over that of the exact logits, each row's mean taken off (softmax ignores it)."""
    difference = logits - exact
    difference -= difference.mean(axis=1, keepdims=True)
    centred = exact - exact.mean(axis=1, keepdims=True)
    return float(np.linalg.norm(difference) / max(float(np.linalg.norm(centred)), 1e-30))


def make_vector(prompt: Sequence[int], ids: Sequence[int], logits: NDArray[np.float32]) -> SelfTestVector:
    """What a graph answered, for its header."""
    expected = logits[np.arange(len(ids)), list(ids)]
    return SelfTestVector(
        prompt_ids=tuple(prompt),
        expected_ids=tuple(ids),
        expected_micro=tuple(round(float(value) * 1e6) for value in expected),
        tolerance_micro=max(1, round(float(logits.std()) * _TOLERANCE * 1e6)),
    )


def check_session(session: Steps, vector: SelfTestVector) -> None:
    """Raises WrongNumbers unless the session answers as the header says: drop the entry and compile again.

    Costs one prefill of 16 tokens and 3 steps, on an empty session, which it leaves empty.
    """
    logits = follow(session, vector.prompt_ids, vector.expected_ids)
    for row, token, micro in zip(logits, vector.expected_ids, vector.expected_micro, strict=True):
        value = float(row[token]) * 1e6
        # The best token may only lose to a tie that lies within the tolerance. NaN compares false: it never passes.
        off, behind = abs(value - micro), float(row.max()) * 1e6 - value
        if not (off <= vector.tolerance_micro and behind <= vector.tolerance_micro):
            raise WrongNumbers(
                f"the self-test expected token {token} with {micro / 1e6:.3f}, got {value / 1e6:.3f}",
                advice="drop the entry and compile again",
            )
