"""What is loaded, in order of use: its memory, who goes when that gets short, what is ending. `serving` fills it."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Protocol

from kensho.app.opening import ServedModel
from kensho.app.tiers import COPIES, KEPT_MODELS, RESERVE_BYTES, ModelSizes, ModelUse, check_room, models_to_close
from kensho.app.warmup import Room
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import KenshoError, NotEnoughMemory
from kensho.base.events import Emit, ModelClosed
from kensho.base.ids import GraphKey
from kensho.base.structs import Struct, field
from kensho.delivery.leases import Lease
from kensho.delivery.store import InstalledModel
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.frames import Tier
from kensho.runtime.text.codec import TextCodec


class Opener(Protocol):
    """What is needed of `opening.ModelOpener`."""

    async def find(self, installed: InstalledModel, tier: Tier) -> LoadedGraph | None: ...
    async def make(
        self, installed: InstalledModel, tier: Tier, *, is_background: bool = False, is_idle: bool = False
    ) -> LoadedGraph: ...
    def hold_idle(self, is_held: bool) -> None: ...
    async def sizes(self, graph: LoadedGraph) -> ModelSizes: ...
    async def start(
        self, installed: InstalledModel, graph: LoadedGraph, sizes: ModelSizes, codec: TextCodec | None
    ) -> ServedModel: ...
    def carry_over(self, before: ServedModel, after: ServedModel) -> None: ...
    async def end(self, served: ServedModel) -> None: ...
    async def release(self, graph: LoadedGraph) -> None: ...
    async def verify(self, graph: LoadedGraph) -> None: ...
    async def invalidate(self, graph: LoadedGraph, reason: str) -> None: ...
    async def finish(self) -> None: ...
    async def close(self) -> None: ...


class Loaded(Struct, frozen=False):
    """The engines of one tier and how many requests they have."""

    served: ServedModel
    users: int = 0
    idle: asyncio.Event = field(factory=asyncio.Event)
    """Set when its last request ends; who waits clears it first."""
    lease: Lease | None = None
    """Of a version that others have followed: given back when its last request has ended."""


class Successor(Struct):
    """The version that the store has now, while another one is loaded."""

    version: str
    since_wall_s: Seconds
    """When that was noticed."""
    is_being_tried: bool = True
    error: KenshoError | None = None
    """Why it could not be used when it was last tried; None: it was not tried to the end yet."""
    retry_at_s: Seconds = 0.0
    """On the monotonic clock."""


class Place(Struct, frozen=False):
    """One loaded model. The lease keeps its files: an engine that is started again opens them anew."""

    installed: InstalledModel
    lease: Lease
    loaded: Loaded
    used_at_s: Seconds
    is_pinned: bool = False
    tokens: deque[tuple[Seconds, int]] = field(factory=deque)
    changing: asyncio.Task[None] | None = None
    """To another tier, or (`successor`) another version."""
    retry_at_s: Seconds = 0.0
    verified_at_s: Seconds = 0.0
    """When the bytes of its graph were last hashed, on the monotonic clock."""
    successor: Successor | None = None

    @property
    def is_changing(self) -> bool:
        return self.changing is not None and not self.changing.done()

    @property
    def is_upgrading(self) -> bool:
        """Another tier of this version is being prepared."""
        return self.is_changing and not (self.successor and self.successor.is_being_tried)


class Places:
    """The loaded models, one version of each, and engines that end when their last request has. Used from one event
    loop."""

    def __init__(
        self,
        opener: Opener,
        *,
        budget_bytes: int,
        can_shrink: bool,
        read_memory: Callable[[], int],
        clock: Clock,
        emit: Emit,
    ) -> None:
        """`budget_bytes`: for all together, 0 = what the machine leaves. `can_shrink`: copies of weights may be given
        back, since nobody has chosen the tier."""
        self._opener = opener
        self._budget_bytes = budget_bytes
        self._can_shrink = can_shrink
        self._read_memory = read_memory
        self._clock = clock
        self._emit = emit
        self._places: dict[str, Place] = {}  # by model, the latest used last
        self._retired: list[Loaded] = []
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._places)

    def get(self, model: str) -> Place | None:
        return self._places.get(model)

    def all(self) -> list[Place]:
        """The latest used last. May be called from any thread."""
        return list(self._places.values())

    def put(self, place: Place) -> None:
        """As the latest used."""
        self._places.pop(place.installed.model, None)
        self._places[place.installed.model] = place

    def put_first(self, place: Place) -> None:
        """As the one that goes before all others."""
        self._places = {place.installed.model: place, **self._places}

    def follow(self, before: Place, after: Place) -> None:
        """Another version of the model in its place; what `before` has running goes on to its end."""
        self._places[after.installed.model] = after
        before.loaded.lease = before.lease
        self.retire(before.loaded)

    def take(self, place: Place) -> None:
        """Nobody gets it from now on; its engines are the caller's to end."""
        del self._places[place.installed.model]

    # --- memory ---

    def free_bytes(self) -> int:
        """What may still be taken, by the machine and by the budget."""
        free = self._read_memory()
        if not self._budget_bytes:
            return free
        served = [place.loaded.served for place in self._places.values()] + [old.served for old in self._retired]
        return min(free, self._budget_bytes - sum(each.sizes.needed_bytes(each.graph.tier) for each in served))

    def room(self) -> Room:
        """For models that are loaded on a guess."""
        return Room(self.free_bytes() - RESERVE_BYTES, KEPT_MODELS - len(self._places))

    async def make_room(self, model: str, tier: Tier, sizes: ModelSizes, *, may_close: bool) -> None:
        """Close what is idle until the model fits. Raises NotEnoughMemory before anything is loaded."""
        if not may_close and len(self._places) >= KEPT_MODELS:
            raise NotEnoughMemory(f"{len(self._places)} models are loaded", advice="unload one, or ask for this one")
        while True:
            try:
                check_room(model, tier, sizes, self.free_bytes())
            except NotEnoughMemory:
                if not may_close:
                    raise
                idle = [use.key for use in self._uses() if not use.is_kept]
                if idle:
                    await self.end(self._places.pop(idle[0]))
                elif self._ending:
                    await asyncio.wait(self._ending)  # what is ending just now has not given back its memory yet
                else:
                    raise
            else:
                return

    def idle_s(self, place: Place) -> Seconds:
        """Since its last request ended; 0 while one runs."""
        return 0.0 if place.loaded.users else max(0.0, self._clock.monotonic_s() - place.used_at_s)

    def close_some(self) -> None:
        """Begin to end the models that should go now."""
        for key in models_to_close(self._uses(), self.free_bytes()):
            self._spawn(self.end(self._places.pop(key)))

    def _uses(self) -> list[ModelUse[str]]:
        return [
            ModelUse(
                key,
                self.idle_s(place),
                is_kept=bool(place.is_pinned or place.loaded.users or place.is_changing or place.successor),
                can_shrink=self._can_shrink and place.loaded.served.graph.tier in COPIES,
            )
            for key, place in self._places.items()
        ]

    # --- ending ---

    async def end(self, place: Place) -> None:
        """End a model that was taken from the places, so that nobody can get it meanwhile."""
        idle_s = self.idle_s(place)
        if place.changing:
            place.changing.cancel()
            await asyncio.gather(place.changing, return_exceptions=True)
        await self._opener.end(place.loaded.served)
        place.lease.close()
        installed = place.installed
        self._emit(ModelClosed(model=installed.model, version=installed.version, idle_s=idle_s))

    def retire(self, loaded: Loaded) -> None:
        """Engines that get no more requests: they end when their last one has."""
        self._retired.append(loaded)
        self.end_retired()

    def end_retired(self) -> None:
        """Begin to end those that have no request left."""
        over = [loaded for loaded in self._retired if loaded.users == 0]
        self._retired = [loaded for loaded in self._retired if loaded.users]
        for loaded in over:
            self._spawn(self._end_engines(loaded))

    async def end_retired_now(self, key: GraphKey) -> None:
        """End those on this graph, whoever they are answering."""
        same = [loaded for loaded in self._retired if loaded.served.graph.key == key]
        self._retired = [loaded for loaded in self._retired if loaded.served.graph.key != key]
        await asyncio.gather(*(self._end_engines(loaded) for loaded in same))

    async def end_engines(self, place: Place) -> None:
        """Only those; the rest of a place that was taken stays. They end also when the caller does not wait."""
        await asyncio.shield(self._spawn(self._end_engines(place.loaded)))

    async def _end_engines(self, loaded: Loaded) -> None:
        await self._opener.end(loaded.served)
        if loaded.lease:
            loaded.lease.close()
            graph = loaded.served.graph
            self._emit(ModelClosed(model=graph.model, version=graph.version, idle_s=0.0))

    async def close(self) -> None:
        """End everything, and whatever is being changed. Idempotent."""
        places, self._places = list(self._places.values()), {}
        retired, self._retired = self._retired, []
        changing = [place.changing for place in places if place.changing]
        for task in changing:
            task.cancel()
        await asyncio.gather(*changing, return_exceptions=True)
        await asyncio.gather(*self._ending, return_exceptions=True)
        await asyncio.gather(*(self._end_engines(loaded) for loaded in retired + [p.loaded for p in places]))
        for place in places:
            place.lease.close()

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task
