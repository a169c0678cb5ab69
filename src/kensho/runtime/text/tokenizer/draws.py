"""A sequence of numbers that is the same everywhere and always: tables and their check must not depend on chance."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016)."""

    def __init__(self, seed: int = 0x9E3779B97F4A7C15) -> None:
        self._state = seed

    def below(self, limit: int) -> int:
        """0 to limit - 1."""
        state = self._state
        state ^= state >> 12
        state = (state ^ state << 25) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 27
        self._state = state
        return ((state * 0x2545F4914F6CDD1D & 0xFFFFFFFFFFFFFFFF) >> 32) * limit >> 32

    def one_of(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]
