"""Hash the graphs that stay loaded, one at a time: bits rot on disks, and in memory too (row R7).

Seldom, and soon once an engine on the graph has computed something wrong: what is wrong with both engines of a model
is wrong with what they share.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from kensho.app.places import Opener, Place
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import Damaged
from kensho.base.ids import GraphKey
from kensho.runtime.cache.loaded_graph import LoadedGraph

VERIFY_EVERY_S: Seconds = 86400.0
"""Of each graph that stays loaded (guess)."""
SUSPECT_EVERY_S: Seconds = 60.0
"""Between two of a graph that is suspected again and again (guess)."""


class Verifying:
    """The check that is under way, if any. Used from one event loop."""

    def __init__(
        self, opener: Opener, *, clock: Clock, give_up: Callable[[Place, LoadedGraph, str], Awaitable[None]]
    ) -> None:
        """`give_up(place, graph, reason)` ends whoever uses a graph that is damaged."""
        self._opener = opener
        self._clock = clock
        self._give_up = give_up
        self._task: asyncio.Task[None] | None = None
        self._suspects: set[GraphKey] = set()
        self._last: tuple[GraphKey, Seconds] | None = None
        """Which was hashed last, and when that began."""

    def look(self, places: Collection[Place]) -> None:
        """Begin to hash a graph that is suspected, or the one that was hashed longest ago, if that was long ago."""
        if self._task and not self._task.done():
            return
        now_s = self._clock.monotonic_s()
        due = [place for place in places if self._is_suspect(place, now_s)]
        due = due or [place for place in places if place.verified_at_s <= now_s - VERIFY_EVERY_S]
        if due:
            place = min(due, key=lambda place: place.verified_at_s)
            self._suspects.discard(place.loaded.served.graph.key)
            self._task = asyncio.create_task(self._verify(place))

    def suspect(self, place: Place) -> None:
        """To be hashed at the next look, unless that was done a moment ago."""
        self._suspects.add(place.loaded.served.graph.key)

    async def close(self) -> None:
        """Idempotent."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _is_suspect(self, place: Place, now_s: Seconds) -> bool:
        key = place.loaded.served.graph.key
        is_fresh = self._last is not None and self._last[0] == key and now_s - self._last[1] < SUSPECT_EVERY_S
        return key in self._suspects and not is_fresh

    async def _verify(self, place: Place) -> None:
        graph = place.loaded.served.graph
        self._last = graph.key, self._clock.monotonic_s()
        try:
            await self._opener.verify(graph)
        except Damaged as error:
            await self._give_up(place, graph, error.message)
        place.verified_at_s = self._clock.monotonic_s()
