"""Loaded models of a program on virtual time: graphs and engines that only cost time and memory."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from kensho.app.opening import ServedModel
from kensho.app.serving import Serving
from kensho.app.tiers import ModelSizes
from kensho.base.errors import Damaged, EngineError, EnginesOff, StorageError, WrongNumbers
from kensho.base.events import Emit, Event, ModelClosed, RequestFinished, TierChanged
from kensho.base.ids import GraphKey, digest_of
from kensho.base.structs import replace
from kensho.delivery.store import InstalledModel
from kensho.resilience.scheduler import Scheduler
from kensho.runtime.cache.loaded_graph import LoadedGraph, Origin
from kensho.runtime.hosts.frames import Tier
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.text.codec import TextCodec
from kensho.settings import Settings
from kensho.testing.clock import VirtualClock
from kensho.testing.loop import run_virtual

MIB = 1 << 20
GRAPH_BYTES = 280 * MIB
COMPILE_S = 5.0
STEP_S = 0.1
START_S = 0.05


@dataclass
class Opener:
    """Graphs and engines that cost time and memory, and nothing else."""

    emit: Emit
    compiled: set[str] = field(default_factory=set)
    errors: list[EngineError] = field(default_factory=list)
    running: list[ServedModel] = field(default_factory=list)
    released: int = 0
    compiles: int = 0
    has_closed: bool = False
    has_finished: bool = False
    is_held: bool = False
    held_s: float = 0.0
    lanes: dict[str, asyncio.Lock] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    unfit: set[str] = field(default_factory=set)
    """Models whose graph from the disk no engine can start with, or answers wrongly with."""
    broken: set[str] = field(default_factory=set)
    """Models that no engine can start with, whatever graph is made for them."""
    off: set[str] = field(default_factory=set)
    """Models whose circuits let no engine be started."""
    carried: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(version, tier) that was followed by (version, tier)."""
    started: list[str] = field(default_factory=list)
    """The tier of each attempt."""
    invalidated: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)

    async def find(self, installed: InstalledModel, tier: Tier) -> LoadedGraph | None:
        return self._graph(installed, tier, "disk") if named(installed) in self.compiled else None

    async def make(
        self, installed: InstalledModel, tier: Tier, *, is_background: bool = False, is_idle: bool = False
    ) -> LoadedGraph:
        if tier == "raw":
            await asyncio.sleep(0.1)
            return self._graph(installed, tier, "raw")
        async with self.lanes.setdefault(named(installed), asyncio.Lock()):
            return await self._compile(installed, tier, is_background=is_background, is_idle=is_idle)

    async def _compile(
        self, installed: InstalledModel, tier: Tier, *, is_background: bool, is_idle: bool
    ) -> LoadedGraph:
        origin: Origin = "disk" if named(installed) in self.compiled else "compile"
        if origin == "compile":
            if is_idle:
                for _ in range(round(COMPILE_S / STEP_S)):
                    while self.is_held:
                        self.held_s += STEP_S
                        await asyncio.sleep(STEP_S)
                    await asyncio.sleep(STEP_S)
            else:
                await asyncio.sleep(COMPILE_S if is_background else COMPILE_S / 2)
            self.compiles += 1
            if self.errors:
                raise self.errors.pop(0)
            self.compiled.add(named(installed))
        return self._graph(installed, tier, origin)

    def hold_idle(self, is_held: bool) -> None:
        self.is_held = is_held

    async def sizes(self, graph: LoadedGraph) -> ModelSizes:
        return ModelSizes(0 if graph.tier == "raw" else GRAPH_BYTES, 10 * MIB, 1)

    async def start(
        self, installed: InstalledModel, graph: LoadedGraph, sizes: ModelSizes, codec: TextCodec | None
    ) -> ServedModel:
        served = ServedModel(
            graph,
            codec or cast("TextCodec", installed.model),
            cast("Scheduler", None),
            cast("tuple[EngineHost]", ()),
            sizes,
        )
        self.started.append(graph.tier)
        await asyncio.sleep(START_S)
        if named(installed) in self.off:
            raise EnginesOff(f"no engine of {named(installed)} may be started")
        if graph.source == "disk" and named(installed) in self.unfit:
            raise WrongNumbers("it answers otherwise than when it was made")
        if named(installed) in self.broken:
            raise EngineError(f"{named(installed)} does not start")
        self.running.append(served)
        return served

    def carry_over(self, before: ServedModel, after: ServedModel) -> None:
        self.carried.append((before.graph.version, before.graph.tier, after.graph.version, after.graph.tier))

    async def end(self, served: ServedModel) -> None:
        await asyncio.sleep(0.01)
        self.running.remove(served)

    async def release(self, graph: LoadedGraph) -> None:
        self.released += 1

    async def verify(self, graph: LoadedGraph) -> None:
        await asyncio.sleep(2)
        self.verified.append(graph.model)
        if graph.model in self.damaged:
            raise Damaged("weights.bin of the compiled graph is damaged")

    async def invalidate(self, graph: LoadedGraph, reason: str) -> None:
        self.compiled.discard(graph.model)
        self.damaged.discard(graph.model)
        self.invalidated.append(reason)

    async def finish(self) -> None:
        await asyncio.sleep(5)
        self.has_finished = True

    async def close(self) -> None:
        self.has_closed = True

    def _graph(self, installed: InstalledModel, tier: Tier, source: Origin) -> LoadedGraph:
        key = GraphKey("0" * 64)
        return LoadedGraph(
            installed.model, installed.version, key, installed.folder, installed.folder, tier, 64, source, 0.0
        )

    @property
    def versions(self) -> list[str]:
        return [served.graph.version for served in self.running]

    @property
    def tiers(self) -> list[str]:
        return [served.graph.tier for served in self.running]


def named(installed: InstalledModel) -> str:
    """How the sets above call it: by its model, unless it is another version than the first."""
    return installed.model if installed.version == "1" else f"{installed.model} {installed.version}"


class World:
    """Also what the program's store has (satisfies `successors.Shelf`): `now_has` changes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.versions: dict[str, str] = {}
        self.reads = 0
        self.damaged: set[str] = set()
        """Versions of which bytes are wrong."""
        self.is_away = False
        self.clock = VirtualClock()
        self.events: list[Event] = []
        self.machine_bytes = 8 << 30
        self.settings = Settings(store=folder)
        self.opener = Opener(self.events.append)

    def run(self, scene: Callable[[Serving], Awaitable[None]], **settings: object) -> None:
        """Play the scene on a Serving; afterwards nothing may be left."""

        def make_opener(emit: Emit) -> Opener:
            self.opener.emit = emit
            return self.opener

        async def play() -> None:
            serving = Serving(
                replace(self.settings, **settings),  # type: ignore[arg-type]
                make_opener=make_opener,
                shelf=lambda: self,
                read_memory=self.free_bytes,
                clock=self.clock,
                emit=self.events.append,
            )
            try:
                await scene(serving)
            finally:
                await serving.close()
                await serving.close()
            assert self.opener.running == []
            assert self.opener.has_closed
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run_virtual(play(), clock=self.clock)

    def free_bytes(self) -> int:
        used = sum(served.sizes.needed_bytes(served.graph.tier) for served in self.opener.running)
        return self.machine_bytes - used

    def now_has(self, version: str, name: str = "m") -> None:
        """An update, a rollback or a pin, by whichever process."""
        self.versions = {**self.versions, name: version}

    def stamp(self) -> object:
        return self.versions

    def current(self) -> dict[str, str]:
        self.reads += 1
        if self.is_away:
            raise StorageError("the disk is away")
        return dict(self.versions)

    def ready(self, model: str) -> InstalledModel:
        installed = self.model(model)
        if installed.version in self.damaged:
            raise Damaged(f"{model} {installed.version} is damaged")
        return installed

    def model(self, name: str) -> InstalledModel:
        version = self.versions.setdefault(name, "1")
        folder = self.folder / name / version
        folder.mkdir(exist_ok=True, parents=True)
        return InstalledModel(name, version, None, None, 1, digest_of(b""), 0.0, folder, (), False, 0, None)

    async def ask(self, serving: Serving, name: str = "m", tokens: int = 10, seconds: float = 1.0) -> str:
        """One answer; returns the tier that gave it."""
        async with serving.use(self.model(name)) as served:
            await asyncio.sleep(seconds)
            self.opener.emit(
                RequestFinished(
                    model=name,
                    version=served.graph.version,
                    request=1,
                    engine="primary",
                    tier=served.graph.tier,
                    priority="high",
                    outcome="ok",
                    tokens=tokens,
                    failovers=0,
                    gap_ms=0.0,
                    first_token_ms=1.0,
                    tokens_per_second=1.0,
                )
            )
            return served.graph.tier

    def changes(self) -> list[tuple[str, str]]:
        return [(event.from_tier, event.to_tier) for event in self.events if isinstance(event, TierChanged)]

    def closed(self) -> list[str]:
        return [event.model for event in self.events if isinstance(event, ModelClosed)]
