"""Load models before anybody asks, for as long as the application stays (row R6). What and when: `warmup`.

    warmer = Warmer(shelf, serving, named=("dialogue",), is_guessing=True, clock=clock, emit=emit)
    task = asyncio.create_task(warmer.run())        # cancel it before the application closes
    warmer.hear(event)                              # every event: it counts requests

Named models are loaded once and kept. Guessed ones are loaded once an hour, and go like any other that nobody asks.
A model that is damaged, does not fit or cannot be compiled stays cold, and that is said: a guess mends nothing.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Protocol

from kensho.app.warmup import (
    LEAD_S,
    Candidate,
    Room,
    add_uses,
    choose_warmup,
    dump_uses,
    hour_of,
    next_look_s,
    parse_uses,
)
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import KenshoError, StorageError
from kensho.base.events import Emit, Event, ModelNotWarmed, ModelWarmed, RequestFinished
from kensho.delivery.store import InstalledModel
from kensho.runtime.cache.loaded_graph import LoadedGraph

BEGIN_S: Seconds = 5.0
"""After the application was opened (guess): one that answers one question and ends is ending by then."""
LOOK_EVERY_S: Seconds = 600.0
"""Requests since the last look are lost with a process that is killed."""


class Shelf(Protocol):
    """The installed models, and a place to keep what was used. Blocking."""

    def candidates(self) -> list[Candidate]: ...

    def ready(self, model: str) -> InstalledModel:
        """The installed model, every byte of it vouched for. Raises Damaged, NotInstalled."""
        ...

    def read_uses(self) -> str: ...

    def write_uses(self, text: str) -> None: ...


class Loads(Protocol):
    """What is needed of `serving.Serving`."""

    def loaded_models(self) -> Collection[str]: ...

    def room(self) -> Room: ...

    async def warm(self, installed: InstalledModel, *, is_kept: bool) -> LoadedGraph: ...


class Warmer:
    """Used from one event loop."""

    def __init__(
        self, shelf: Shelf, loads: Loads, *, named: Sequence[str], is_guessing: bool, clock: Clock, emit: Emit
    ) -> None:
        """`is_guessing`: models that were asked at this hour of the day before too, not only `named` ones."""
        self._shelf = shelf
        self._loads = loads
        self._named = tuple(named)
        self._is_guessing = is_guessing
        self._clock = clock
        self._emit = emit
        self._asked: Counter[str] = Counter()
        self._tried: set[tuple[str, int]] = set()

    def hear(self, event: Event) -> None:
        """Count a request that was answered."""
        if isinstance(event, RequestFinished):
            self._asked[event.model] += 1

    async def run(self) -> None:
        """Until it is cancelled; what was counted is kept then too."""
        try:
            while True:
                for model in await self._choose():
                    await self._warm(model)
                await asyncio.sleep(min(LOOK_EVERY_S, next_look_s(self._clock.wall_s())))
        finally:
            self._keep()

    async def _choose(self) -> list[str]:
        uses = parse_uses(await asyncio.to_thread(self._keep))
        try:
            candidates = await asyncio.to_thread(self._shelf.candidates)
        except StorageError:  # no store, or its disk is away: what is not there cannot be warmed
            return []
        now_s = self._clock.wall_s()
        hour = hour_of(now_s + LEAD_S)
        chosen = choose_warmup(
            now_s,
            self._named,
            uses if self._is_guessing else {},
            candidates=candidates,
            loaded=self._loads.loaded_models(),
            room=self._loads.room(),
        )
        self._tried = {(model, at) for model, at in self._tried if at == hour}
        new = [model for model in chosen if (model, hour) not in self._tried]
        self._tried |= {(model, hour) for model in new}
        return new

    async def _warm(self, model: str) -> None:
        began_s = self._clock.monotonic_s()
        try:
            installed = await asyncio.to_thread(self._shelf.ready, model)
            graph = await self._loads.warm(installed, is_kept=model in self._named)
        except KenshoError as error:
            self._emit(ModelNotWarmed(model=model, reason=error.message))
            return
        seconds = self._clock.monotonic_s() - began_s
        self._emit(ModelWarmed(model=model, version=graph.version, source=graph.source, seconds=seconds))

    def _keep(self) -> str:
        """Add what was asked since the last time; returns all that is kept. Blocking. What is refused is lost."""
        asked, self._asked = self._asked, Counter()
        text = ""
        with suppress(StorageError):
            text = self._shelf.read_uses()
            if asked:
                text = dump_uses(add_uses(parse_uses(text), asked, self._clock.wall_s()))
                self._shelf.write_uses(text)
        return text
