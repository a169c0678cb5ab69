"""Who of many connections may stay when there are more than places. Pure.

A newcomer takes the place of the connection that has waited longest for its client to ask for something, so whoever
connects and says nothing keeps nobody else out. When all are busy, a few more are let in to be told so; the rest
is cut.

    places: Places[Connection] = Places(1000, told=64, has_said=has_unread)
    entry = places.enter(connection)          # its first place is one in which it waits
    places.asked(connection)                  # busy from now on ...
    places.waits(connection)                  # ... and no more
    places.leave(connection)
"""

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from kensho.base.structs import Struct

C = TypeVar("C")


class Entry(Struct, Generic[C]):
    """What becomes of a newcomer."""

    verdict: Literal["stays", "is_told", "is_cut"]
    """is_told: it has no place, and may ask once, to hear that."""
    instead_of: C | None = None
    """Loses its place to the newcomer: close it. It has left already."""


class Places(Generic[C]):
    """Every call is O(1), over many calls."""

    def __init__(self, places: int, *, told: int, has_said: Callable[[C], bool]) -> None:
        """`told`: how many without a place may be there to hear that. `has_said`: whether something has come from one
        that waits, and was not looked at yet; such a one does not lose its place."""
        self.places = places
        self._told = told
        self._has_said = has_said
        self._waiting: dict[C, None] = {}  # a set whose order is that of time
        self._busy: set[C] = set()
        self._without: set[C] = set()

    def __len__(self) -> int:
        """How many have a place."""
        return len(self._waiting) + len(self._busy)

    def enter(self, one: C) -> Entry[C]:
        instead_of = None
        if len(self) >= self.places:
            instead_of = self._longest_silent()
            if instead_of is None:
                if len(self._without) >= self._told:
                    return Entry("is_cut")
                self._without.add(one)
                return Entry("is_told")
            del self._waiting[instead_of]
        self._waiting[one] = None
        return Entry("stays", instead_of)

    def asked(self, one: C) -> None:
        """Its client has asked for something. Of one without a place: nothing changes. Idempotent."""
        if one in self._waiting:
            del self._waiting[one]
            self._busy.add(one)

    def waits(self, one: C) -> None:
        """Its client has its answer, and may ask again. Idempotent."""
        if one in self._busy:
            self._busy.remove(one)
            self._waiting[one] = None

    def leave(self, one: C) -> None:
        """It is closed. Idempotent."""
        self._waiting.pop(one, None)
        self._busy.discard(one)
        self._without.discard(one)

    def _longest_silent(self) -> C | None:
        while (oldest := next(iter(self._waiting), None)) is not None:
            if not self._has_said(oldest):
                return oldest
            self.asked(oldest)
        return None
