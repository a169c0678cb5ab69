"""Loaded models go over to the version that the store has now, whichever process has changed it, and nobody waits.

    successors = Successors(shelf, places, go_over=..., clock=clock, emit=emit)
    successors.look()             # at each request and every few seconds: two stats while nothing has changed

Rules: (1) what is loaded answers until the other version is verified, compiled and up; (2) what the store says last
counts: a move to anything else is given up; (3) a version that cannot be used here is tried again after a while, or
when the store has yet another one, and until then the old one answers and is not closed; (4) reading the store never
holds up a request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal, Protocol

from kensho.app.places import Place, Places, Successor
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import KenshoError, NotEnoughMemory, StorageError
from kensho.base.events import Emit, VersionKept
from kensho.base.structs import replace
from kensho.delivery.store import InstalledModel

RETRY_S: Seconds = 300.0
"""After a version that could not be used (guess; the graph cache has a longer memory for compiles that fail)."""
ROOM_RETRY_S: Seconds = 30.0
"""Where there was no room for both, and streams went on (guess)."""


class Shelf(Protocol):
    """The installed models. All but `stamp` block and raise StorageError."""

    def stamp(self) -> object | None:
        """Another value when something has changed, None: perhaps (`delivery.stamp`). Takes microseconds."""
        ...

    def current(self) -> Mapping[str, str]:
        """The current version of each model."""
        ...

    def ready(self, model: str) -> InstalledModel:
        """The current version, every byte of it vouched for. Raises Damaged, NotInstalled."""
        ...


Step = Literal["stay", "settle", "move"]


def next_step(loaded: str, current: str | None, successor: Successor | None, now_s: Seconds) -> Step:
    """What to do with a model of which version `loaded` is loaded and `current` is what the store has. Pure.

    settle: there is nothing to go over to any more.
    """
    if current is None or current == loaded:
        return "settle" if successor and current else "stay"
    if successor is None or successor.version != current:
        return "move"
    return "move" if not successor.is_being_tried and now_s >= successor.retry_at_s else "stay"


class Successors:
    """Used from one event loop."""

    def __init__(
        self,
        shelf: Shelf,
        places: Places,
        *,
        go_over: Callable[[Place, InstalledModel], Awaitable[None]],
        clock: Clock,
        emit: Emit,
    ) -> None:
        """`go_over(place, installed)` opens that version, which takes the requests from then on; if it raises a
        KenshoError the place answers as before."""
        self._shelf = shelf
        self._places = places
        self._go_over = go_over
        self._clock = clock
        self._emit = emit
        self._seen: object | None = None
        self._reading: asyncio.Task[None] | None = None
        self._moves: set[asyncio.Task[None]] = set()

    def look(self) -> None:
        """See whether the store has changed, or something is to be tried again; what follows is done beside the
        caller. 8 us."""
        if self._reading and not self._reading.done():
            return
        now_s = self._clock.monotonic_s()
        waiting = [place.successor for place in self._places.all() if place.successor]
        is_due = any(not one.is_being_tried and now_s >= one.retry_at_s for one in waiting)
        if is_due or self._seen is None or self._shelf.stamp() != self._seen:
            self._reading = asyncio.create_task(self._read())

    async def wait_for(self, place: Place, version: str) -> None:
        """Go over to this version now, and return when that is over. Raises what keeps it from answering."""
        successor = place.successor
        if successor is None or successor.version != version or not successor.is_being_tried:
            self._begin(place, version)
        if place.changing:
            await asyncio.wait([place.changing])
        if place.successor and place.successor.error:
            raise place.successor.error

    async def close(self) -> None:
        """End what is under way. Idempotent."""
        if self._reading:
            await asyncio.wait([self._reading])  # milliseconds, on a thread that nobody can stop
        moves = list(self._moves)
        for task in moves:
            task.cancel()
        await asyncio.gather(*moves, return_exceptions=True)

    async def _read(self) -> None:
        stamp = self._shelf.stamp()
        try:
            current = await asyncio.to_thread(self._shelf.current)
        except StorageError:  # the disk is away, say: what is loaded answers
            current = {}
        self._seen = stamp
        now_s = self._clock.monotonic_s()
        for place in self._places.all():
            installed = place.installed
            version = current.get(installed.model)
            step = next_step(installed.version, version, place.successor, now_s)
            if step == "settle":
                self._settle(place)
            elif step == "move" and version:
                self._begin(place, version)

    def _settle(self, place: Place) -> None:
        if place.successor and place.successor.is_being_tried and place.changing:
            place.changing.cancel()
        place.successor = None

    def _begin(self, place: Place, version: str) -> None:
        before, known = place.changing, place.successor
        if known and known.version == version:
            place.successor = replace(known, is_being_tried=True)
        else:
            place.successor = Successor(version, since_wall_s=self._clock.wall_s())
        place.changing = task = asyncio.create_task(self._move(place, version, before))
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    async def _move(self, place: Place, version: str, before: asyncio.Task[None] | None) -> None:
        if before:  # another tier of the old version is of no use any more
            before.cancel()
            await asyncio.wait([before])
        try:
            installed = await asyncio.to_thread(self._shelf.ready, place.installed.model)
            if installed.version == version:
                await self._go_over(place, installed)
            else:  # it has changed again: the next look sees that
                place.successor, self._seen = None, None
        except KenshoError as error:
            self._keep(place, error)

    def _keep(self, place: Place, error: KenshoError) -> None:
        successor, installed = place.successor, place.installed
        if successor is None:
            return
        delay_s = ROOM_RETRY_S if isinstance(error, NotEnoughMemory) else RETRY_S
        place.successor = replace(
            successor, is_being_tried=False, error=error, retry_at_s=self._clock.monotonic_s() + delay_s
        )
        if successor.error is None or successor.error.code != error.code:  # it is told once
            self._emit(
                VersionKept(
                    model=installed.model,
                    version=installed.version,
                    wanted_version=successor.version,
                    reason=error.message,
                )
            )
