"""A model that costs nothing, and a way to ask a generator for tokens."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kensho.base.inference import Sampling
from kensho.runtime.engine.generation import Generator
from kensho.runtime.hosts.frames import DoneReason, Generate

VOCABULARY = 50


class Arithmetic:
    """A model whose logits are a function of the whole sequence, and which notices a KV cache that is not it."""

    max_context = 200
    vocab_size = VOCABULARY
    piece_tokens = 200

    def __init__(self, *, is_roomy: bool = True) -> None:
        self.rows: list[tuple[int, ...]] = []
        """What the KV cache holds for each id."""
        self.aside: list[tuple[int, ...]] | None = None
        self.appended: list[int] = []
        self.most = 0
        """Positions in memory at once."""
        self._is_roomy = is_roomy

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        assert 0 < len(ids) <= self.piece_tokens
        self.rows += [self.row(token, index, len(ids)) for index, token in enumerate(ids)]
        assert len(self.rows) <= self.max_context
        self.most = max(self.most, len(self.rows) + len(self.aside or ()))
        self.appended.append(len(ids))
        seed = np.random.default_rng(abs(hash(tuple(self.rows))))
        return seed.standard_normal(VOCABULARY, dtype=np.float32)

    def row(self, token: int, index: int, count: int) -> tuple[int, ...]:
        del index, count
        return (token,)

    def rewind(self, position: int) -> None:
        assert 0 <= position <= len(self.rows)
        del self.rows[position:]

    def branch(self, position: int) -> None:
        assert 0 <= position <= len(self.rows)
        self.rows, self.aside = self.rows[:position], self.rows
        self.most = max(self.most, len(self.rows) + len(self.aside))

    def swap(self) -> None:
        assert self.aside is not None
        self.rows, self.aside = self.aside, self.rows

    def give_back(self) -> None:
        self.aside = None

    def has_memory(self, positions: int) -> bool:
        assert 0 < positions <= self.max_context
        return self._is_roomy


class Grainy(Arithmetic):
    """Its last bits depend on how a position was computed, as a real model's do: alone or with others, and which."""

    def row(self, token: int, index: int, count: int) -> tuple[int, ...]:
        return token, index, count


class InPieces(Grainy):
    piece_tokens = 16


def run(
    generator: Generator, prompt: Sequence[int], accepted: Sequence[int], sampling: Sampling, cancel_after: int = 10**6
) -> tuple[list[int], DoneReason]:
    made: list[int] = []
    request = Generate(1, tuple(prompt), tuple(accepted), sampling)
    reason = generator.run(request, is_cancelled=lambda: len(made) >= cancel_after, on_token=made.append)
    return made, reason
