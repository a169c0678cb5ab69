"""The answering half of the application: models that are loaded, each with its engines, circuits and queue.

A model without a compiled graph answers at once from the delivered weights (raw tier) while the graph is compiled in
the background. A tier, or a version, is changed by starting engines beside the old ones: requests that come from then
on go to the new ones, the old ones end when their last request has. What is decided is decided in `tiers` and
`successors`; this shell looks every LOOK_EVERY_S and carries it out, off the path of requests. One event loop for all.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from kensho.app.attempts import Attempts
from kensho.app.opening import ServedModel
from kensho.app.places import Loaded, Opener, Place, Places
from kensho.app.tiers import COPIES, KEPT_MODELS, WINDOW_S, TierFacts, choose_tier
from kensho.app.traffic import Traffic
from kensho.app.verifying import Verifying
from kensho.app.warmup import BEFORE_IDLE_S, Room
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineError, KenshoError, NotEnoughMemory, NotInstalled
from kensho.base.events import CanaryFinished, Emit, Event, RequestFinished, TierChanged, TierKept, VersionChanged
from kensho.delivery.leases import lease_version
from kensho.delivery.store import InstalledModel
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.frames import Tier
from kensho.settings import Settings

LOOK_EVERY_S: Seconds = 5.0
DRAIN_S: Seconds = 2.0
"""So long requests may wait for those that run, where there is no room for two versions beside each other (guess)."""
RETRY_S: Seconds = 300.0
"""After an upgrade that failed (guess); the graph cache has a longer memory for compiles that fail again and again."""
_DOUBTS = frozenset({"mismatch", "wrong_numbers"})
"""Failures of a canary that may be the graph's."""

if TYPE_CHECKING:
    from kensho.app.successors import Shelf, Successors


class Serving:
    """Loads models and keeps them. Not thread-safe: one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        make_opener: Callable[[Emit], Opener],
        shelf: "Callable[[], Shelf]",
        read_memory: Callable[[], int],
        clock: Clock,
        emit: Emit,
    ) -> None:
        """`shelf` gives what knows the store, `read_memory` how much the machine has left (`runtime.system.memory`)."""
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
        self._attempts = Attempts(self._opener, self._places, tier=settings.tier)
        self._shelf = shelf
        self._made_successors: Successors | None = None
        self._lanes: dict[str, asyncio.Lock] = {}
        self._loads: dict[str, asyncio.Task[Place]] = {}
        self._looking: asyncio.Task[None] | None = None
        self._is_finishing = False
        self._traffic = Traffic(self._opener.hold_idle)
        self._verifying = Verifying(self._opener, clock=clock, give_up=self._give_up)

    @asynccontextmanager
    async def use(self, installed: InstalledModel) -> AsyncIterator[ServedModel]:
        """The model, loaded; it stays loaded while in use. Where another version of it is loaded, that one answers
        until its successor can. Whoever waits for a load may leave: it goes on, for whoever comes next. Raises
        ModelError, CompileFailed, EngineError."""
        if self._places.get(installed.model):  # what is opened now is what the store has now
            self._successors().look()
        with self._traffic.of(installed.model):
            place = await self._place(installed)
            loaded = place.loaded
            loaded.users += 1
            try:
                if len(self._places) > KEPT_MODELS:
                    self._places.close_some()
                yield loaded.served
            finally:
                loaded.users -= 1
                if not loaded.users:
                    loaded.idle.set()
                place.used_at_s = self._clock.monotonic_s()
                self._places.end_retired()

    async def pin(self, installed: InstalledModel) -> None:
        """Load this version ahead of the first request, and keep the model until `close`. Raises what `use` does."""
        with self._traffic.of(installed.model):
            place = await self._place(installed)
        place.is_pinned = True
        if place.installed.version != installed.version:
            await self._successors().wait_for(place, installed.version)

    async def warm(self, installed: InstalledModel, *, is_kept: bool) -> LoadedGraph:
        """Load the model on a guess (row R6): one at a time, while nobody else is served, closing nothing. `is_kept`:
        until `close`. Raises NotEnoughMemory too when there is no place left."""
        was_loaded = self._places.get(installed.model) is not None
        with self._traffic.guess(installed.model):
            if not was_loaded and self._settings.tier != "raw":
                # Made first: the model is not loaded before its graph is there, as it is for somebody who waits.
                tier = self._settings.tier
                graph = await self._opener.make(installed, "mapped" if tier == "auto" else tier, is_idle=True)
                await self._opener.release(graph)
            place = await self._traffic.run_when_quiet(lambda: self._load(installed, may_close=False))
        place.is_pinned |= is_kept
        if not (was_loaded or place.is_pinned) and self._places.get(installed.model) is place:
            self._places.put_first(place)  # nobody has asked for it
            place.used_at_s += BEFORE_IDLE_S
        return place.loaded.served.graph

    def loaded_models(self) -> set[str]:
        return {place.installed.model for place in self._places.all()}

    def room(self) -> Room:
        """For models that are loaded on a guess."""
        return self._places.room()

    def served(self, model: str) -> ServedModel | None:
        """None if the model is not loaded."""
        place = self._places.get(model)
        return place.loaded.served if place else None

    def answering(self, model: str) -> InstalledModel | None:
        """The version that answers; None if the model is not loaded."""
        place = self._places.get(model)
        return place.installed if place else None

    def is_loaded(self, installed: InstalledModel) -> bool:
        """This version."""
        place = self._places.get(installed.model)
        return place is not None and place.installed.version == installed.version

    def loaded(self) -> list[Place]:
        """The latest used last. To be looked at only; may be called from any thread."""
        return self._places.all()

    async def compile(self, installed: InstalledModel) -> LoadedGraph:
        """Find or make the graph, without loading it. Cancelling kills the compile child."""
        graph = await self._attempts.make(installed)
        await self._opener.release(graph)
        return graph

    async def finish(self) -> None:
        """Let what is made in the background come to its end, graphs and tables of tokenizers, so that the next start
        finds it."""
        self._is_finishing = True
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        changing = [place.changing for place in self._places.all() if place.changing]
        await asyncio.gather(*changing, self._opener.finish(), return_exceptions=True)

    async def close(self) -> None:
        """End every engine and every compile; nothing is left behind. Idempotent."""
        if self._made_successors:
            await self._made_successors.close()
        await self._verifying.close()
        if self._looking:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        loads = list(self._loads.values())
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        await self._places.close()
        await self._opener.close()

    # --- opening ---

    def _lane(self, model: str) -> asyncio.Lock:
        """Held while the model is opened."""
        return self._lanes.setdefault(model, asyncio.Lock())

    async def _place(self, installed: InstalledModel) -> Place:
        """Where the model is loaded: at once if it is, else when that has come out."""
        model = installed.model
        while (place := self._places.get(model)) is None or self._lane(model).locked():
            load = self._loads.get(model)
            if load is None:
                load = self._loads[model] = asyncio.create_task(self._load(installed))
                load.add_done_callback(partial(self._note_load, model))
            await asyncio.wait({load})
            if load.cancelled():
                raise EngineError(f"model {model!r} is being closed", advice="open it again")
            load.result()
        self._places.put(place)
        return place

    def _note_load(self, model: str, load: asyncio.Task[Place]) -> None:
        del self._loads[model]
        if not load.cancelled():
            load.exception()  # events have told it to those who have left

    async def _load(self, installed: InstalledModel, *, may_close: bool = True) -> Place:
        async with self._lane(installed.model):
            place = self._places.get(installed.model)
            if place is None:
                place = await self._open(installed, may_close=may_close)
                self._adjust(place)
                self._places.put(place)
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
            return place

    async def _open(self, installed: InstalledModel, *, is_background: bool = False, may_close: bool = True) -> Place:
        lease = lease_version(installed.folder)
        if lease is None:
            raise NotInstalled(f"{installed.model} {installed.version} was removed a moment ago", advice="ask again")
        try:
            served = await self._attempts.open(installed, is_background=is_background, may_close=may_close)
        except BaseException:
            lease.close()
            raise
        now_s = self._clock.monotonic_s()
        return Place(installed, lease, Loaded(served), now_s, verified_at_s=now_s)

    # --- versions ---

    def _successors(self) -> "Successors":
        """Made, and imported, when something has been loaded for a while: no first answer waits for it."""
        if self._made_successors is None:
            from kensho.app.successors import Successors

            self._made_successors = Successors(
                self._shelf(), self._places, go_over=self._go_over, clock=self._clock, emit=self._emit
            )
        return self._made_successors

    async def _go_over(self, place: Place, installed: InstalledModel) -> None:
        """Open this version of a loaded model beside it, and let it take the requests from then on."""
        began_s, from_version = self._clock.monotonic_s(), place.installed.version
        try:
            after = await self._open(installed, is_background=True)
        except NotEnoughMemory:
            after = await self._open_instead(place, installed)
        else:
            self._places.follow(place, after)
        self._opener.carry_over(place.loaded.served, after.loaded.served)
        after.is_pinned, after.tokens, after.used_at_s = place.is_pinned, place.tokens, place.used_at_s
        self._adjust(after)
        seconds = self._clock.monotonic_s() - began_s
        self._emit(
            VersionChanged(
                model=installed.model, from_version=from_version, to_version=installed.version, seconds=seconds
            )
        )

    async def _open_instead(self, place: Place, installed: InstalledModel) -> Place:
        """There is no room for both: the old version ends first, when what it answers now is over. Who comes meanwhile
        waits for the new one, or for the old one if that does not start."""
        async with self._lane(installed.model):
            await _drain(place.loaded, installed.version)
            self._places.take(place)
            lease = place.lease
            try:
                await self._places.end_engines(place)
                try:
                    after = await self._open(installed, is_background=True)
                except KenshoError:
                    again = await self._open(place.installed)
                    place.loaded, place.lease = again.loaded, again.lease
                    self._places.put(place)
                    raise
            finally:
                lease.close()
            self._places.put(after)
            return after

    # --- tiers ---

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            self._places.end_retired()
            self._places.close_some()
            self._successors().look()
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
            served = await self._attempts.start(installed, graph, before.served.codec, is_giving_back=is_giving_back)
        except KenshoError as error:
            place.retry_at_s = self._clock.monotonic_s() + RETRY_S
            tier = before.served.graph.tier
            self._emit(TierKept(model=installed.model, version=installed.version, tier=tier, reason=error.message))
            return
        self._opener.carry_over(before.served, served)
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
        async with self._lane(installed.model):
            is_loaded = self._places.get(installed.model) is place  # another version may have followed it
            if is_loaded:
                self._places.take(place)
                await self._places.end(place)
            await self._places.end_retired_now(graph.key)
            await self._opener.invalidate(graph, reason)
        if is_loaded and place.is_pinned:
            await self.pin(installed)

    def _hear(self, event: Event) -> None:
        """What engines and circuits say passes through here: answered tokens are what a better tier is worth, and a
        canary that failed is a doubt about the graph."""
        if isinstance(event, RequestFinished):
            place = self._places.get(event.model)
            if place and place.installed.version == event.version:
                place.tokens.append((self._clock.monotonic_s(), event.tokens))
        elif isinstance(event, CanaryFinished) and event.failure in _DOUBTS:
            place = self._places.get(event.model)
            if place:
                self._verifying.suspect(place)
        self._emit(event)


async def _drain(loaded: Loaded, wanted_version: str) -> None:
    """Returns when nobody uses it any more; nobody can begin to. Raises NotEnoughMemory if that takes too long."""
    loaded.idle.clear()
    if loaded.users:
        try:
            async with asyncio.timeout(DRAIN_S):
                await loaded.idle.wait()
        except TimeoutError:
            raise NotEnoughMemory(
                f"there is no room for {wanted_version} beside {loaded.served.graph.version}, which is answering",
                advice="it is tried again; raise model_memory_bytes or close other programs",
            ) from None
