"""The answering half of the application: models that are loaded, each with its engines, circuits and queue.

Everything runs on one event loop; disk work is done in threads, computing in engine processes. At most KEPT_MODELS are
loaded at once (row R3): when one more is wanted, the one that was used longest ago and answers nobody is closed.
"""

import asyncio
import os
import random
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from kensho.base.clock import Clock
from kensho.base.errors import CompileFailed, EngineError, NotInstalled
from kensho.base.events import Emit
from kensho.delivery.leases import Lease, lease_version
from kensho.delivery.store import InstalledModel
from kensho.resilience.circuit import BreakerSettings
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.runtime.compiler import Compiler
from kensho.runtime.frames import Tier
from kensho.runtime.graph_cache import GraphCache
from kensho.runtime.header import read_header
from kensho.runtime.host import EngineHost
from kensho.runtime.loaded_graph import LoadedGraph
from kensho.runtime.loader import ModelLoader
from kensho.runtime.machine import read_machine
from kensho.runtime.text import TextCodec
from kensho.settings import Settings, TierChoice

KEPT_MODELS = 3
"""The prototype's memory cache: LRU of 3."""
MAX_THREADS = 4
"""Of one engine host, unless the settings say otherwise: decoding is bound by memory, more threads only compete."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A loaded version of a model. `tier` is the one that was chosen."""

    graph: LoadedGraph
    codec: TextCodec
    scheduler: Scheduler
    engines: tuple[EngineHost, ...]
    lease: Lease
    """Keeps the version's files: an engine that is started again opens them anew."""


@dataclass(slots=True)
class _Place:
    served: ServedModel
    users: int = 0


Key = tuple[str, str, TierChoice]


class Serving:
    """Loads models and keeps them. Not thread-safe: one event loop."""

    def __init__(self, settings: Settings, *, clock: Clock, emit: Emit) -> None:
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._threads = settings.threads or min(MAX_THREADS, len(os.sched_getaffinity(0)))
        self._loader = self._make_loader()
        self._places: dict[Key, _Place] = {}  # in order of use, the latest last
        self._lanes: dict[Key, asyncio.Lock] = {}

    @asynccontextmanager
    async def use(self, installed: InstalledModel) -> AsyncIterator[ServedModel]:
        """The model, loaded; it stays loaded while in use. Raises ModelError, CompileFailed, EngineError."""
        key = (installed.model, installed.version, self._settings.tier)
        async with self._lanes.setdefault(key, asyncio.Lock()):
            place = self._places.pop(key, None) or _Place(await self._open(installed))
            self._places[key] = place
            place.users += 1
        try:
            await self._make_room()
            yield place.served
        finally:
            place.users -= 1

    def served(self, model: str) -> ServedModel | None:
        """The model as it was used last; None if it is not loaded."""
        found = [place.served for (name, _, _), place in self._places.items() if name == model]
        return found[-1] if found else None

    def is_loaded(self, installed: InstalledModel) -> bool:
        return (installed.model, installed.version, self._settings.tier) in self._places

    async def compile(self, installed: InstalledModel) -> LoadedGraph:
        """Find or make the graph, without loading it. Cancelling kills the compile child."""
        graph = await self._load_graph(installed)
        self._loader.release(graph)
        return graph

    async def close(self) -> None:
        """End every engine; nothing is left behind. Idempotent."""
        places, self._places = list(self._places.values()), {}
        await asyncio.gather(*(self._close(place.served) for place in places))
        self._loader.close()

    async def _open(self, installed: InstalledModel) -> ServedModel:
        """Load the model. A graph from the cache that no engine can start with is dropped, and made anew once (R7)."""
        lease = lease_version(installed.folder)
        if lease is None:
            raise NotInstalled(f"{installed.model} {installed.version} was removed a moment ago", advice="ask again")
        try:
            graph = await self._load_graph(installed)
            try:
                return await self._start(installed, graph, lease)
            except EngineError as error:
                if graph.source != "disk":
                    raise
                await self._loader.invalidate(graph, f"no engine starts with it: {error.message}")
            return await self._start(installed, await self._load_graph(installed), lease)
        except BaseException:
            lease.close()
            raise

    async def _start(self, installed: InstalledModel, graph: LoadedGraph, lease: Lease) -> ServedModel:
        # A large vocabulary takes as long as the model (0.5 to 1 s for 262k): both load at once.
        loading = asyncio.create_task(asyncio.to_thread(TextCodec.load, installed.folder))
        try:
            canary = await _canary(graph, loading)
            primary, standby = self._engine("primary", graph), self._engine("standby", graph)
            scheduler = Scheduler(
                primary,
                standby,
                model=installed.model,
                version=installed.version,
                tier_of=lambda _: graph.tier,
                canary=canary,
                settings=self._scheduler_settings(),
                clock=self._clock,
                rng=random.random,
                emit=self._emit,
            )
            await scheduler.__aenter__()
            try:
                codec = await loading
            except BaseException:
                await scheduler.close()
                raise
        except BaseException:
            loading.cancel()
            self._loader.release(graph)
            raise
        return ServedModel(graph, codec, scheduler, (primary, standby), lease)

    async def _load_graph(self, installed: InstalledModel) -> LoadedGraph:
        digests = {file.path: file.used for file in installed.files if file.used is not None}

        async def load(tier: Tier) -> LoadedGraph:
            return await self._loader.load(installed.model, installed.version, installed.folder, digests, tier=tier)

        if self._settings.tier != "auto":
            return await load(self._settings.tier)
        try:
            return await load("mapped")
        except CompileFailed:
            # No int8 form answers well enough on this CPU (the event said so): the exact graph needs none.
            return await load("raw")

    def _engine(self, name: str, graph: LoadedGraph) -> EngineHost:
        settings = self._settings
        return EngineHost(
            name,
            graph,
            clock=self._clock,
            emit=self._emit,
            env=settings.child_env,
            threads=self._threads,
            max_context=min(settings.max_context, graph.max_positions),
            start_s=settings.start_timeout_s,
            inactivity_s=settings.inactivity_s,
            allow_faults=settings.allow_faults,
        )

    def _scheduler_settings(self) -> SchedulerSettings:
        settings = self._settings
        circuit = BreakerSettings(
            open_s=settings.open_s,
            restart_open_s=settings.restart_open_s,
            canary_timeout_s=settings.canary_timeout_s,
            start_timeout_s=settings.start_timeout_s,
        )
        return SchedulerSettings(standby=settings.standby, breaker=circuit)

    def _make_loader(self) -> ModelLoader:
        settings = self._settings

        def token() -> str:
            return secrets.token_hex(4)

        return ModelLoader(
            cache=GraphCache(
                settings.store / "graphs", limit_bytes=settings.graph_cache_bytes, token=token, emit=self._emit
            ),
            compiler=Compiler(env=settings.child_env, stall_s=settings.start_timeout_s, emit=self._emit),
            scratch=Path(tempfile.gettempdir()),
            token=token,
            machine=read_machine(),
            clock=self._clock,
            emit=self._emit,
            max_context=settings.max_context,
            threads=self._threads,
        )

    async def _make_room(self) -> None:
        for key in [key for key, place in self._places.items() if place.users == 0]:
            if len(self._places) <= KEPT_MODELS:
                return
            await self._close(self._places.pop(key).served)

    async def _close(self, served: ServedModel) -> None:
        await served.scheduler.close()
        self._loader.release(served.graph)
        served.lease.close()


async def _canary(graph: LoadedGraph, codec: Awaitable[TextCodec]) -> Canary:
    """The probe of a circuit: the graph's own self-test; the raw graph has none and is asked when it is healthy."""
    if graph.tier == "raw":
        return Canary((await codec).prompt_ids("Hello"))
    vector = read_header(graph.graph_folder).self_test
    return Canary(vector.prompt_ids, vector.expected_ids)
