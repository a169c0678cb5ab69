"""Hash the graphs that stay loaded, one at a time and seldom: bits rot on disks, and in memory too (row R7)."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from kensho.app.places import Opener, Place
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import Damaged
from kensho.runtime.cache.loaded_graph import LoadedGraph

VERIFY_EVERY_S: Seconds = 86400.0
"""Of each graph that stays loaded (guess)."""


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

    def look(self, places: Collection[Place]) -> None:
        """Begin to hash the graph that was hashed longest ago, if that was long ago."""
        due_s = self._clock.monotonic_s() - VERIFY_EVERY_S
        due = [place for place in places if place.verified_at_s <= due_s]
        if due and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._verify(min(due, key=lambda place: place.verified_at_s)))

    async def close(self) -> None:
        """Idempotent."""
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _verify(self, place: Place) -> None:
        graph = place.loaded.served.graph
        try:
            await self._opener.verify(graph)
        except Damaged as error:
            await self._give_up(place, graph, error.message)
        place.verified_at_s = self._clock.monotonic_s()
