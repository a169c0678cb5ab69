"""Counts what may happen a thousand times a second, and tells it in sums: soon, then from time to time.

crowd = Gathering(lambda counts: emit(...), every_s=10.0)
crowd.add("refused")            # told within SOON_S, with all that comes until then
crowd.flush()                   # at the end: tells what is left
"""

import asyncio
from collections.abc import Callable, Hashable, Mapping
from typing import Generic, Literal, TypeVar

from kensho.base.clock import Seconds
from kensho.base.events import ConnectionsScarce, Emit

K = TypeVar("K", bound=Hashable)
Crowding = Literal["closed", "refused"]
"""What becomes of connections for which there is no place."""

SOON_S: Seconds = 0.5
CROWD_EVERY_S: Seconds = 10.0
MAX_KEYS = 64
"""Different things between two tellings; more are not counted (guess)."""


class Gathering(Generic[K]):
    """Used on one event loop."""

    def __init__(self, tell: Callable[[Mapping[K, int]], None], *, every_s: Seconds) -> None:
        """`tell` gets how often each key came since it was called last; at most every `every_s`."""
        self._tell = tell
        self._every_s = every_s
        self._counts: dict[K, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next_s = 0.0

    def add(self, key: K) -> None:
        if key in self._counts or len(self._counts) < MAX_KEYS:
            self._counts[key] = self._counts.get(key, 0) + 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(self._next_s, loop.time() + SOON_S), self.flush)

    def flush(self) -> None:
        """Tell what has come. Idempotent."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
            self._next_s = asyncio.get_running_loop().time() + self._every_s
        counts, self._counts = self._counts, {}
        if counts:
            self._tell(counts)


def gather_crowd(interface: str, places: int, emit: Emit) -> Gathering[Crowding]:
    """Of one interface with so many places: told as `ConnectionsScarce`."""

    def tell(counts: Mapping[Crowding, int]) -> None:
        closed, refused = counts.get("closed", 0), counts.get("refused", 0)
        emit(ConnectionsScarce(interface=interface, places=places, closed=closed, refused=refused))

    return Gathering(tell, every_s=CROWD_EVERY_S)
