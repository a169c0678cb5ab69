"""The answering half of the application: models that are loaded, each with its engines, circuits and queue.

A model without a compiled graph answers at once from the delivered weights (raw tier) while the graph is compiled in
the background. A tier is changed by starting engines beside the old ones: requests that come from then on go to the
new ones, the old ones end when their last request has. What is decided is decided in `tiers`; this shell looks every
LOOK_EVERY_S and carries it out, off the path of requests. Everything runs on one event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from kensho.app.opening import ServedModel
from kensho.app.places import Key, Loaded, Opener, Place, Places
from kensho.app.status import LoadedTier
from kensho.app.tiers import (
    COPIES,
    KEPT_MODELS,
    WINDOW_S,
    TierFacts,
    choose_tier,
)
from kensho.app.traffic import Traffic
from kensho.app.verifying import Verifying
from kensho.app.warmup import BEFORE_IDLE_S, Room
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import CompileFailed, EngineError, KenshoError, NotEnoughMemory, NotInstalled
from kensho.base.events import Emit, Event, RequestFinished, TierChanged, TierKept
from kensho.delivery.leases import lease_version
from kensho.delivery.store import InstalledModel
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.frames import Tier
from kensho.runtime.text.codec import TextCodec
from kensho.settings import Settings

LOOK_EVERY_S: Seconds = 5.0
RETRY_S: Seconds = 300.0
"""After an upgrade that failed (guess); the graph cache has a longer memory for compiles that fail again and again."""


class Serving:
    """Loads models and keeps them. Not thread-safe: one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        make_opener: Callable[[Emit], Opener],
        read_memory: Callable[[], int],
        clock: Clock,
        emit: Emit,
    ) -> None:
        """`read_memory` says how many bytes the machine can still give (`runtime.system.memory`)."""
        self._settings = settings
        self._opener = make_opener(self._hear)
        self._clock = clock
        self._emit = emit
        self._places = Places(
            self._opener,
            budget_bytes=settings.model_memory_bytes,
            can_shrink=settings.tier == "auto",
            read_memory=read_memory,
            clock=clock,
            emit=emit,
        )
        self._lanes: dict[Key, asyncio.Lock] = {}
        self._looking: asyncio.Task[None] | None = None
        self._is_finishing = False
        self._traffic = Traffic(self._opener.hold_idle)
        self._verifying = Verifying(self._opener, clock=clock, give_up=self._give_up)

    @asynccontextmanager
    async def use(self, installed: InstalledModel) -> AsyncIterator[ServedModel]:
        """The model, loaded; it stays loaded while in use. Raises ModelError, CompileFailed, EngineError."""
        with self._traffic.of(_key(installed)):
            place = await self._place(installed)
            loaded = place.loaded
            loaded.users += 1
            try:
                if len(self._places) > KEPT_MODELS:
                    self._places.close_some()
                yield loaded.served
            finally:
                loaded.users -= 1
                place.used_at_s = self._clock.monotonic_s()
                self._places.end_retired()

    async def pin(self, installed: InstalledModel) -> ServedModel:
        """Load the model ahead of its first request, and keep it until `close`. Raises what `use` does."""
        with self._traffic.of(_key(installed)):
            place = await self._place(installed)
        place.is_pinned = True
        return place.loaded.served

    async def warm(self, installed: InstalledModel, *, is_kept: bool) -> LoadedGraph:
        """Load the model on a guess (row R6): one at a time, while nobody else is served, closing nothing. `is_kept`:
        until `close`. Raises NotEnoughMemory too when there is no place left."""
        was_loaded = self._places.get(key := _key(installed)) is not None
        with self._traffic.guess(key):
            if not was_loaded and self._settings.tier != "raw":
                # Made first: the model is not loaded before its graph is there, as it is for somebody who waits.
                tier = self._settings.tier
                graph = await self._opener.make(installed, "mapped" if tier == "auto" else tier, is_idle=True)
                await self._opener.release(graph)
            place = await self._traffic.run_when_quiet(lambda: self._place(installed, may_close=False))
        place.is_pinned |= is_kept
        if not (was_loaded or place.is_pinned) and self._places.get(key) is place:
            self._places.put_first(key, place)  # nobody has asked for it
            place.used_at_s += BEFORE_IDLE_S
        return place.loaded.served.graph

    def loaded_models(self) -> set[str]:
        return {place.installed.model for place in self._places.all()}

    def room(self) -> Room:
        """For models that are loaded on a guess."""
        return self._places.room()

    def served(self, model: str) -> ServedModel | None:
        """The model as it was used last; None if it is not loaded."""
        found = [place.loaded.served for place in self._places.all() if place.installed.model == model]
        return found[-1] if found else None

    def is_loaded(self, installed: InstalledModel) -> bool:
        return self._places.get(_key(installed)) is not None

    def tiers(self) -> dict[Key, LoadedTier]:
        """On which tier each loaded model answers, by (model, version)."""
        return {
            _key(place.installed): LoadedTier(place.loaded.served.graph.tier, place.is_changing)
            for place in self._places.all()
        }

    def loaded(self) -> list[tuple[ServedModel, LoadedTier, bool]]:
        """What is loaded, on which tier, and whether it is pinned; the latest used last."""
        return [
            (place.loaded.served, LoadedTier(place.loaded.served.graph.tier, place.is_changing), place.is_pinned)
            for place in self._places.all()
        ]

    async def compile(self, installed: InstalledModel) -> LoadedGraph:
        """Find or make the graph, without loading it. Cancelling kills the compile child."""
        graph = await self._make(installed)
        await self._opener.release(graph)
        return graph

    async def finish(self) -> None:
        """Let what is made in the background come to its end, graphs and tables of tokenizers, so that the next start
        finds it."""
        self._is_finishing = True
        changing = [place.changing for place in self._places.all() if place.changing]
        await asyncio.gather(*changing, self._opener.finish(), return_exceptions=True)

    async def close(self) -> None:
        """End every engine and every compile; nothing is left behind. Idempotent."""
        await self._verifying.close()
        if self._looking:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._places.close()
        await self._opener.close()

    # --- opening ---

    async def _place(self, installed: InstalledModel, *, may_close: bool = True) -> Place:
        key = _key(installed)
        async with self._lanes.setdefault(key, asyncio.Lock()):
            place = self._places.get(key) or await self._open(installed, may_close=may_close)
            self._places.put(key, place)
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
            return place

    async def _open(self, installed: InstalledModel, *, may_close: bool) -> Place:
        """A graph from the cache that does not start, or answers otherwise than it did, is dropped, made anew (R7)."""
        lease = lease_version(installed.folder)
        if lease is None:
            raise NotInstalled(f"{installed.model} {installed.version} was removed a moment ago", advice="ask again")
        try:
            graph = await self._first_graph(installed)
            try:
                served = await self._start(installed, graph, may_close=may_close)
            except NotEnoughMemory:
                raise
            except EngineError:
                if graph.source != "disk" and (graph.tier != "raw" or self._settings.tier == "raw"):
                    raise
                # Exact and slow does not start either: only the compiled form is left.
                again = await (self._first_graph(installed) if graph.tier != "raw" else self._make(installed))
                served = await self._start(installed, again, may_close=may_close)
        except BaseException:
            lease.close()
            raise
        now_s = self._clock.monotonic_s()
        place = Place(installed, lease, Loaded(served), now_s, verified_at_s=now_s)
        self._adjust(place)
        return place

    async def _first_graph(self, installed: InstalledModel) -> LoadedGraph:
        """What can answer soonest: the compiled graph if there is one, else the exact one, made in 0.1 s."""
        if self._settings.tier != "auto":
            return await self._make(installed)
        found = await self._opener.find(installed, "mapped")
        return found or await self._opener.make(installed, "raw")

    async def _make(self, installed: InstalledModel) -> LoadedGraph:
        if self._settings.tier != "auto":
            return await self._opener.make(installed, self._settings.tier)
        try:
            return await self._opener.make(installed, "mapped")
        except CompileFailed:
            # No int8 form answers well enough on this CPU (the event said so): the exact graph needs none.
            return await self._opener.make(installed, "raw")

    async def _start(
        self,
        installed: InstalledModel,
        graph: LoadedGraph,
        codec: TextCodec | None = None,
        *,
        is_giving_back: bool = False,
        may_close: bool = True,
    ) -> ServedModel:
        try:
            sizes = await self._opener.sizes(graph)
            if not is_giving_back:
                await self._places.make_room(installed.model, graph.tier, sizes, may_close=may_close)
        except BaseException:
            await self._opener.release(graph)
            raise
        try:
            return await self._opener.start(installed, graph, sizes, codec)
        except EngineError as error:
            if graph.source == "disk":
                await self._opener.invalidate(graph, f"no engine starts with it: {error.message}")
            raise

    # --- tiers ---

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._places.end_retired()
            self._places.close_some()
            for place in self._places.all():
                self._adjust(place)
            self._verifying.look(self._places.all())

    def _adjust(self, place: Place) -> None:
        """Begin to change the model's tier, if it should have another one."""
        now_s = self._clock.monotonic_s()
        is_settled = self._settings.tier != "auto" or self._is_finishing
        if is_settled or place.is_changing or now_s < place.retry_at_s:
            return
        served = place.loaded.served
        while place.tokens and place.tokens[0][0] < now_s - WINDOW_S:
            place.tokens.popleft()
        facts = TierFacts(
            current=served.graph.tier,
            sizes=served.sizes,
            free_bytes=self._places.free_bytes(),
            recent_tokens=sum(count for _, count in place.tokens),
            idle_s=self._places.idle_s(place),
        )
        wanted = choose_tier(self._settings.tier, facts)
        if wanted != served.graph.tier:
            place.changing = asyncio.create_task(self._change(place, wanted))

    async def _change(self, place: Place, wanted: Tier) -> None:
        """Make the graph, start its engines and let them take the requests from now on."""
        installed, before = place.installed, place.loaded
        try:
            graph = await self._opener.make(installed, wanted, is_background=True)
            if self._is_finishing:
                await self._opener.release(graph)
                return
            # Giving back is for when there is no room: the reserve pays for the moment in which both are up.
            is_giving_back = wanted == "mapped" and before.served.graph.tier in COPIES
            served = await self._start(installed, graph, before.served.codec, is_giving_back=is_giving_back)
        except KenshoError as error:
            place.retry_at_s = self._clock.monotonic_s() + RETRY_S
            tier = before.served.graph.tier
            self._emit(TierKept(model=installed.model, version=installed.version, tier=tier, reason=error.message))
            return
        place.loaded = Loaded(served)
        self._places.retire(before)
        self._emit(
            TierChanged(
                model=installed.model,
                version=installed.version,
                from_tier=before.served.graph.tier,
                to_tier=wanted,
            )
        )

    async def _give_up(self, place: Place, graph: LoadedGraph, reason: str) -> None:
        """End every engine on this graph now, whoever it is answering: no token more from wrong bytes. The next
        request opens the model anew."""
        installed = place.installed
        key = _key(installed)
        async with self._lanes.setdefault(key, asyncio.Lock()):
            if self._places.get(key) is place:
                self._places.take(key)
                await self._places.end(place)
            await self._places.end_retired_now(graph.key)
            await self._opener.invalidate(graph, reason)
        if place.is_pinned:
            await self.pin(installed)

    def _hear(self, event: Event) -> None:
        """What engines and circuits say passes through here: answered tokens are what a better tier is worth."""
        if isinstance(event, RequestFinished):
            place = self._places.get((event.model, event.version))
            if place:
                place.tokens.append((self._clock.monotonic_s(), event.tokens))
        self._emit(event)


def _key(installed: InstalledModel) -> Key:
    return installed.model, installed.version
