"""The answering half of the application: models that are loaded, each with its engines, circuits and queue.

A model without a compiled graph answers at once from the delivered weights (raw tier) while the graph is compiled in
the background. A tier is changed by starting engines beside the old ones: requests that come from then on go to the
new ones, the old ones end when their last request has. What is decided is decided in `tiers`; this shell looks every
LOOK_EVERY_S and carries it out, off the path of requests. Everything runs on one event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

from kensho.app.opening import ServedModel
from kensho.app.places import Key, Loaded, Opener, Place
from kensho.app.status import LoadedTier
from kensho.app.tiers import (
    COPIES,
    KEPT_MODELS,
    RESERVE_BYTES,
    WINDOW_S,
    ModelSizes,
    ModelUse,
    TierFacts,
    check_room,
    choose_tier,
    models_to_close,
)
from kensho.app.traffic import Traffic
from kensho.app.verifying import Verifying
from kensho.app.warmup import BEFORE_IDLE_S, Room
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import CompileFailed, EngineError, KenshoError, NotEnoughMemory, NotInstalled
from kensho.base.events import Emit, Event, ModelClosed, RequestFinished, TierChanged, TierKept
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
        self._read_memory = read_memory
        self._clock = clock
        self._emit = emit
        self._places: dict[Key, Place] = {}  # in order of use, the latest last
        self._lanes: dict[Key, asyncio.Lock] = {}
        self._retired: list[Loaded] = []
        self._tasks: set[asyncio.Task[None]] = set()
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
                    self._close_some()
                yield loaded.served
            finally:
                loaded.users -= 1
                place.used_at_s = self._clock.monotonic_s()
                self._end_retired()

    async def pin(self, installed: InstalledModel) -> ServedModel:
        """Load the model ahead of its first request, and keep it until `close`. Raises what `use` does."""
        with self._traffic.of(_key(installed)):
            place = await self._place(installed)
        place.is_pinned = True
        return place.loaded.served

    async def warm(self, installed: InstalledModel, *, is_kept: bool) -> LoadedGraph:
        """Load the model on a guess (row R6): one at a time, while nobody else is served, closing nothing. `is_kept`:
        until `close`. Raises NotEnoughMemory too when there is no place left."""
        was_loaded = (key := _key(installed)) in self._places
        with self._traffic.guess(key):
            if not was_loaded and self._settings.tier != "raw":
                # Made first: the model is not loaded before its graph is there, as it is for somebody who waits.
                tier = self._settings.tier
                graph = await self._opener.make(installed, "mapped" if tier == "auto" else tier, is_idle=True)
                await self._opener.release(graph)
            place = await self._traffic.run_when_quiet(lambda: self._place(installed, may_close=False))
        place.is_pinned |= is_kept
        if not (was_loaded or place.is_pinned) and self._places.get(key) is place:
            self._places = {key: place, **self._places}  # nobody has asked for it: it goes before all others
            place.used_at_s += BEFORE_IDLE_S
        return place.loaded.served.graph

    def loaded_models(self) -> set[str]:
        return {model for model, _ in self._places}

    def room(self) -> Room:
        """For models that are loaded on a guess."""
        return Room(self._free_bytes() - RESERVE_BYTES, KEPT_MODELS - len(self._places))

    def served(self, model: str) -> ServedModel | None:
        """The model as it was used last; None if it is not loaded."""
        found = [place.loaded.served for (name, _), place in self._places.items() if name == model]
        return found[-1] if found else None

    def is_loaded(self, installed: InstalledModel) -> bool:
        return _key(installed) in self._places

    def tiers(self) -> dict[Key, LoadedTier]:
        """On which tier each loaded model answers, by (model, version)."""
        return {
            key: LoadedTier(place.loaded.served.graph.tier, place.is_changing)
            for key, place in list(self._places.items())
        }

    def loaded(self) -> list[tuple[ServedModel, LoadedTier, bool]]:
        """What is loaded, on which tier, and whether it is pinned; the latest used last."""
        return [
            (place.loaded.served, LoadedTier(place.loaded.served.graph.tier, place.is_changing), place.is_pinned)
            for place in list(self._places.values())
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
        changing = [place.changing for place in self._places.values() if place.changing]
        await asyncio.gather(*changing, self._opener.finish(), return_exceptions=True)

    async def close(self) -> None:
        """End every engine and every compile; nothing is left behind. Idempotent."""
        places, self._places = list(self._places.values()), {}
        retired, self._retired = self._retired, []
        await self._verifying.close()
        tasks = [self._looking, *(place.changing for place in places)]
        for task in tasks:
            if task:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task), return_exceptions=True)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(self._opener.end(loaded.served) for loaded in retired + [p.loaded for p in places]))
        for place in places:
            place.lease.close()
        await self._opener.close()

    # --- opening ---

    async def _place(self, installed: InstalledModel, *, may_close: bool = True) -> Place:
        key = _key(installed)
        async with self._lanes.setdefault(key, asyncio.Lock()):
            place = self._places.pop(key, None) or await self._open(installed, may_close=may_close)
            self._places[key] = place
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
                await self._make_room(installed, graph.tier, sizes, may_close=may_close)
        except BaseException:
            await self._opener.release(graph)
            raise
        try:
            return await self._opener.start(installed, graph, sizes, codec)
        except EngineError as error:
            if graph.source == "disk":
                await self._opener.invalidate(graph, f"no engine starts with it: {error.message}")
            raise

    # --- memory ---

    def _free_bytes(self) -> int:
        free = self._read_memory()
        budget = self._settings.model_memory_bytes
        if not budget:
            return free
        served = [place.loaded.served for place in self._places.values()] + [old.served for old in self._retired]
        return min(free, budget - sum(each.sizes.needed_bytes(each.graph.tier) for each in served))

    async def _make_room(self, installed: InstalledModel, tier: Tier, sizes: ModelSizes, *, may_close: bool) -> None:
        """Close what is idle until the model fits. Raises NotEnoughMemory before anything is loaded."""
        if not may_close and len(self._places) >= KEPT_MODELS:
            raise NotEnoughMemory(f"{len(self._places)} models are loaded", advice="unload one, or ask for this one")
        while True:
            try:
                check_room(installed.model, tier, sizes, self._free_bytes())
            except NotEnoughMemory:
                if not may_close:
                    raise
                idle = [use.key for use in self._uses() if not use.is_kept]
                if idle:
                    await self._end_place(self._places.pop(idle[0]))
                elif self._tasks:
                    await asyncio.wait(self._tasks)  # what is ending just now has not given back its memory yet
                else:
                    raise
            else:
                return

    def _uses(self) -> list[ModelUse[Key]]:
        return [
            ModelUse(
                key,
                self._idle_s(place),
                is_kept=place.is_pinned or place.loaded.users > 0 or place.is_changing,
                can_shrink=self._settings.tier == "auto" and place.loaded.served.graph.tier in COPIES,
            )
            for key, place in self._places.items()
        ]

    def _idle_s(self, place: Place) -> Seconds:
        return 0.0 if place.loaded.users else max(0.0, self._clock.monotonic_s() - place.used_at_s)

    def _close_some(self) -> None:
        for key in models_to_close(self._uses(), self._free_bytes()):
            self._spawn(self._end_place(self._places.pop(key)))

    async def _end_place(self, place: Place) -> None:
        """End a model that was taken from the places, so that nobody can get it meanwhile."""
        idle_s = self._idle_s(place)
        if place.changing:
            place.changing.cancel()
            await asyncio.gather(place.changing, return_exceptions=True)
        await self._opener.end(place.loaded.served)
        place.lease.close()
        installed = place.installed
        self._emit(ModelClosed(model=installed.model, version=installed.version, idle_s=idle_s))

    # --- tiers ---

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._end_retired()
            self._close_some()
            for place in list(self._places.values()):
                self._adjust(place)
            self._verifying.look(self._places.values())

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
            free_bytes=self._free_bytes(),
            recent_tokens=sum(count for _, count in place.tokens),
            idle_s=self._idle_s(place),
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
        self._retired.append(before)
        self._emit(
            TierChanged(
                model=installed.model,
                version=installed.version,
                from_tier=before.served.graph.tier,
                to_tier=wanted,
            )
        )
        self._end_retired()

    async def _give_up(self, place: Place, graph: LoadedGraph, reason: str) -> None:
        """End every engine on this graph now, whoever it is answering: no token more from wrong bytes. The next
        request opens the model anew."""
        installed = place.installed
        key = _key(installed)
        async with self._lanes.setdefault(key, asyncio.Lock()):
            if self._places.get(key) is place:
                await self._end_place(self._places.pop(key))
            same = [loaded for loaded in self._retired if loaded.served.graph.key == graph.key]
            self._retired = [loaded for loaded in self._retired if loaded.served.graph.key != graph.key]
            await asyncio.gather(*(self._opener.end(loaded.served) for loaded in same))
            await self._opener.invalidate(graph, reason)
        if place.is_pinned:
            await self.pin(installed)

    def _end_retired(self) -> None:
        over = [loaded for loaded in self._retired if loaded.users == 0]
        self._retired = [loaded for loaded in self._retired if loaded.users]
        for loaded in over:
            self._spawn(self._opener.end(loaded.served))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hear(self, event: Event) -> None:
        """What engines and circuits say passes through here: answered tokens are what a better tier is worth."""
        if isinstance(event, RequestFinished):
            place = self._places.get((event.model, event.version))
            if place:
                place.tokens.append((self._clock.monotonic_s(), event.tokens))
        self._emit(event)


def _key(installed: InstalledModel) -> Key:
    return installed.model, installed.version
