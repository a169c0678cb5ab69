"""Tokenizer tables for models that came without them: made after the first answer, found at the next start.

No answer waits for them, and nothing is done before one was given: until then the machine is the user's. A program that
ends by itself has them made first (as it finishes a compile, ADR 40), or it would never find them.
"""

import asyncio
from collections.abc import Mapping

from kensho.base.clock import Clock
from kensho.base.events import Emit, Event, RequestFinished, TokenizerTables
from kensho.base.ids import Digest
from kensho.delivery.store import InstalledModel
from kensho.runtime.text.codec import TextCodec
from kensho.runtime.text.tokenizer.builder import TablesBuilder
from kensho.settings import Settings

Key = tuple[str, str]


class TablesInBackground:
    """Used from one event loop. Hand on events through `hear`; `close` ends every build."""

    def __init__(self, settings: Settings, *, clock: Clock, emit: Emit) -> None:
        self._builder = TablesBuilder(settings.store / "graphs", env=settings.child_env, clock=clock, emit=emit)
        self._emit = emit
        self._wanted: dict[Key, tuple[InstalledModel, Mapping[str, Digest]]] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}

    def note(self, installed: InstalledModel, codec: TextCodec, digests: Mapping[str, Digest]) -> None:
        """The model was opened with this codec."""
        for reason in codec.refused:
            self._emit(
                TokenizerTables(
                    model=installed.model, version=installed.version, outcome="refused", detail=reason, seconds=0.0
                )
            )
        if codec.source == "library" and self._builder.is_wanted(digests):
            self._wanted[installed.model, installed.version] = (installed, digests)

    def hear(self, event: Event) -> None:
        """Pass the event on; after a model's answer its tables are begun."""
        self._emit(event)
        if isinstance(event, RequestFinished):
            self._begin((event.model, event.version))

    async def finish(self, installed: InstalledModel) -> None:
        """Have the tables of this model made, if it lacks them, and wait for that."""
        key = (installed.model, installed.version)
        self._begin(key)
        if task := self._tasks.get(key):
            await asyncio.shield(task)

    async def finish_all(self) -> None:
        """Have all tables made that are lacking, and wait for that."""
        for key in list(self._wanted):
            self._begin(key)
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """End the builds; no child is left."""
        self._wanted.clear()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _begin(self, key: Key) -> None:
        wanted = self._wanted.pop(key, None)
        if wanted is None:
            return
        installed, digests = wanted
        building = self._builder.build(installed.model, installed.version, installed.folder, digests)
        self._tasks[key] = asyncio.create_task(building)
