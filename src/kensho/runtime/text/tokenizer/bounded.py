"""A dict that computes what it lacks and never grows beyond a bound. For use with `map(cache.__getitem__, ...)`."""

from collections.abc import Callable
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(dict[K, V]):
    """`make(key)` for a missing key, kept. Full, it forgets everything: that is rare, and cheaper than keeping order.

    Threads may share it: at worst something is computed twice.
    """

    __slots__ = ("_limit", "_make")

    def __init__(self, make: Callable[[K], V], limit: int) -> None:
        super().__init__()
        self._make = make
        self._limit = limit

    def __missing__(self, key: K) -> V:
        value = self._make(key)
        self.keep(key, value)
        return value

    def keep(self, key: K, value: V) -> None:
        """Remember what was made otherwise."""
        if len(self) >= self._limit:
            self.clear()
        self[key] = value
