"""How one model is opened: its graph found or made, its two engines started behind a scheduler. The edge for `serving`.

Nothing is decided here. What `start` returns is running processes; give it back to `end`.
"""

import asyncio
import os
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

from kensho.app.circuit_file import FILE_NAME, CircuitFile
from kensho.app.machine_state import surroundings
from kensho.app.tiers import COPIES, ModelSizes
from kensho.app.tokenizer_tables import TablesInBackground
from kensho.base.clock import Clock
from kensho.base.errors import WrongNumbers
from kensho.base.events import Emit
from kensho.base.ids import Digest
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, replace
from kensho.delivery.store import InstalledModel, is_store, store_missing
from kensho.resilience.circuit import FORCED, BreakerSettings
from kensho.resilience.guard import Canary
from kensho.resilience.request import Lasting
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.graph_entry import read_boot_id
from kensho.runtime.cache.graph_identity import stated_kv_bytes, stated_vocab_size
from kensho.runtime.cache.header import GRAPH_FILE, TABLE_SECTION, WEIGHTS_FILE, read_header
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.cache.loader import ModelLoader
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.hosts.early_host import EarlyHosts
from kensho.runtime.hosts.frames import Tier
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_supply import HostSupply
from kensho.runtime.hosts.prefork import Prefork
from kensho.runtime.system.cpus import read_cpus
from kensho.runtime.system.machine import read_machine
from kensho.runtime.system.read_ahead import read_ahead
from kensho.runtime.text.codec import TextCodec
from kensho.runtime.text.tokenizer.files import places
from kensho.settings import Settings

MAX_THREADS = 4
"""Of one engine host, unless the settings say otherwise: decoding is bound by memory, more threads only compete."""

if TYPE_CHECKING:
    from kensho.runtime.engine.in_process import InProcessEngine

    LoadedEngine = EngineHost | InProcessEngine


class ServedModel(Struct):
    """A version of a model with its engines up, on one tier."""

    graph: LoadedGraph
    codec: TextCodec
    scheduler: Scheduler
    engines: "tuple[LoadedEngine, ...]"
    sizes: ModelSizes

    def tier_of(self, engine: str) -> Tier:
        return _tier_of(self.graph, engine)


class ModelOpener:
    """Opens models. Used from one event loop; disk work is done in threads, computing in processes."""

    def __init__(self, settings: Settings, *, clock: Clock, emit: Emit, first_host: Prefork | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._tables = TablesInBackground(settings, clock=clock, emit=emit)
        self._emit = emit = self._tables.hear
        self._threads = settings.threads or min(MAX_THREADS, read_cpus())
        self._compiler = Compiler(env=settings.child_env, stall_s=settings.start_timeout_s, emit=emit)
        self._loader = _make_loader(settings, self._compiler, self._threads, clock=clock, emit=emit)
        self._circuits = CircuitFile(settings.store / FILE_NAME, clock=clock, emit=emit)
        self._supply = HostSupply(env=settings.child_env, emit=emit, first=first_host)
        self._hosts = EarlyHosts(self._supply)
        self._reading: set[asyncio.Task[int]] = set()
        self._lasting: dict[tuple[str, str], Lasting] = {}
        """By model and version: kept until the program ends, a few KB each."""
        self._is_closing = False

    async def find(self, installed: InstalledModel, tier: Tier) -> LoadedGraph | None:
        """The graph, if it need not be made."""
        return await self._loader.find(
            installed.model, installed.version, installed.folder, _digests(installed), tier=tier
        )

    async def make(
        self, installed: InstalledModel, tier: Tier, *, is_background: bool = False, is_idle: bool = False
    ) -> LoadedGraph:
        """The graph, made if need be; `is_idle`: when the machine has nothing else to do. Raises ModelError,
        CompileFailed, NotEnoughSpace, StorageError."""
        settings = self._settings
        if not is_store(settings.store):  # nothing is made where it was: its disk may come back
            raise store_missing(settings.store)
        # Somebody waits, and the graph is all but there: the process of its engine can start already.
        if tier == "raw" and settings.isolation == "process":
            self._hosts.prepare(env=settings.child_env, allow_faults=settings.allow_faults)
        try:
            graph = await self._loader.load(
                installed.model,
                installed.version,
                installed.folder,
                _digests(installed),
                tier=tier,
                is_background=is_background,
                is_idle=is_idle,
            )
        except BaseException:
            if tier == "raw":
                await self._hosts.discard()
            raise
        if is_background:  # the first run of a model, most likely: what waits for its graph waits for its tables too
            try:
                await self._tables.finish(installed)
            except BaseException:
                self._loader.release(graph)
                raise
        return graph

    def hold_idle(self, is_held: bool) -> None:
        """Stop compiles that are only guesses, or let them go on."""
        self._compiler.hold_idle(is_held)

    async def sizes(self, graph: LoadedGraph) -> ModelSizes:
        """What its engines will need."""
        return await asyncio.to_thread(self._sizes, graph)

    def _sizes(self, graph: LoadedGraph) -> ModelSizes:
        context = self._max_context(graph)
        hosts = 2 if self._settings.standby == "hot" and self._settings.isolation == "process" else 1
        if graph.tier == "raw":
            return ModelSizes(0, stated_kv_bytes(graph.model_folder) * context, hosts)
        header = read_header(graph.graph_folder)
        tables = header.bytes_of(TABLE_SECTION)
        return ModelSizes(header.size_bytes, header.kv_bytes_per_position * context, hosts, tables)

    async def start(
        self, installed: InstalledModel, graph: LoadedGraph, sizes: ModelSizes, codec: TextCodec | None
    ) -> ServedModel:
        """Engines on this graph, which is theirs from now on, also when it fails. Raises EngineError, ModelError.

        `codec`: the model's, if it is loaded already. A large vocabulary takes as long as the model (0.5 to 1 s for
        262k), so both load at once.
        """
        self._read_ahead(installed, graph)
        loading = asyncio.create_task(self._codec(installed, codec))
        try:
            canary = await asyncio.to_thread(_canary, graph)
            primary, standby = self._engine("primary", graph), self._engine("standby", graph)
            scheduler = Scheduler(
                primary,
                standby,
                model=installed.model,
                version=installed.version,
                tier_of=lambda name: _tier_of(graph, name),
                canary=canary,
                settings=self._scheduler_settings(),
                clock=self._clock,
                rng=_rng,
                emit=self._emit,
                surroundings=surroundings(self._circuits, installed.version, lambda name: _tier_of(graph, name)),
                lasting=self._lasting.setdefault((installed.model, installed.version), Lasting()),
            )
            await scheduler.__aenter__()
            try:
                await self._prove(graph, (primary, standby))
                return ServedModel(graph, await loading, scheduler, (primary, standby), sizes)
            except BaseException:
                await scheduler.close()
                raise
        except BaseException:
            loading.cancel()
            self._loader.release(graph)
            raise

    def carry_over(self, before: ServedModel, after: ServedModel) -> None:
        """What was said of engines by their names, faults and a person's word, holds for those that follow them. At
        the moment in which they do."""
        for old, new in zip(before.engines, after.engines, strict=True):
            if old.armed_fault:
                new.arm_fault(*old.armed_fault)
        follow = after.scheduler.circuits()
        for name, seen in before.scheduler.circuits().items():
            said, known = (each.mode if each.mode in FORCED else None for each in (seen, follow[name]))
            if said is not known or (said and seen.leaves_in_s is not None):
                after.scheduler.force(name, said, seen.leaves_in_s if said else None)

    async def _prove(self, graph: LoadedGraph, engines: "tuple[LoadedEngine, ...]") -> None:
        """The first use in this boot of the machine: right bytes are not yet right answers, if the engine or the
        processor is not what it was. 0.1 s."""
        if graph.is_proved:
            return
        engine = next((engine for engine in engines if engine.is_alive), engines[0])
        vector = read_header(graph.graph_folder).self_test
        sampling = Sampling(max_tokens=len(vector.expected_ids))
        async with aclosing(engine.generate(vector.prompt_ids, (), sampling)) as stream:
            ids = tuple([token async for token in stream])
        if not ids or ids != vector.expected_ids[: len(ids)]:  # a short context ends it early
            raise WrongNumbers(
                f"the compiled graph of {graph.model} answers otherwise than when it was made",
                advice="it is compiled again",
            )
        await self._loader.confirm(graph)

    async def verify(self, graph: LoadedGraph) -> None:
        """Hash a graph that is in use, slowly. Raises Damaged."""
        await self._loader.verify(graph)

    async def end(self, served: ServedModel) -> None:
        """End its engines; nothing of them is left. Idempotent for the engines, not for the graph."""
        await served.scheduler.close()
        self._loader.release(served.graph)

    async def release(self, graph: LoadedGraph) -> None:
        """A graph that was found or made, and not started."""
        self._loader.release(graph)
        if graph.tier == "raw":
            await self._hosts.discard()

    async def invalidate(self, graph: LoadedGraph, reason: str) -> None:
        """No engine can use it, whatever its hashes say: it is made anew when it is wanted again (row R7)."""
        await self._loader.invalidate(graph, reason)

    async def finish(self) -> None:
        """What a later start would otherwise wait for is made: tables, for models that were opened without."""
        await self._tables.finish_all()

    async def close(self) -> None:
        """After the last engine has ended."""
        self._is_closing = True
        await asyncio.gather(*self._reading)
        await self._tables.close()
        await self._hosts.discard()
        self._loader.close()
        self._supply.close()
        await asyncio.to_thread(self._circuits.close)

    def _read_ahead(self, installed: InstalledModel, graph: LoadedGraph) -> None:
        """Ask the kernel for what a cold start is about to touch, in that order, while engines start."""
        made_here = self._settings.store / "graphs"
        files = [place.path for place in places(installed.folder, _digests(installed), made_here)]
        if graph.tier == "raw":
            files += [graph.graph_folder / GRAPH_FILE, *sorted(graph.model_folder.glob("*.safetensors"))]
        else:
            files += [graph.graph_folder / GRAPH_FILE, graph.graph_folder / WEIGHTS_FILE]
        reading = asyncio.create_task(asyncio.to_thread(read_ahead, files, goes_on=lambda: not self._is_closing))
        self._reading.add(reading)
        reading.add_done_callback(self._reading.discard)

    async def _codec(self, installed: InstalledModel, codec: TextCodec | None) -> TextCodec:
        if codec is not None:
            return codec
        digests, made_here = _digests(installed), self._settings.store / "graphs"
        loaded = await asyncio.to_thread(TextCodec.load, installed.folder, digests=digests, made_here=made_here)
        self._tables.note(installed, loaded, digests)
        return loaded

    def _max_context(self, graph: LoadedGraph) -> int:
        return min(self._settings.max_context, graph.max_positions)

    def _engine(self, name: str, graph: LoadedGraph) -> "LoadedEngine":
        settings = self._settings
        if settings.isolation == "none":
            from kensho.runtime.engine.in_process import InProcessEngine

            return InProcessEngine(
                name,
                replace(graph, tier=_tier_of(graph, name)),
                clock=self._clock,
                emit=self._emit,
                threads=self._threads,
                max_context=self._max_context(graph),
                start_s=settings.start_timeout_s,
                inactivity_s=settings.inactivity_s,
            )
        return EngineHost(
            name,
            replace(graph, tier=_tier_of(graph, name)),
            clock=self._clock,
            emit=self._emit,
            env=settings.child_env,
            threads=self._threads,
            max_context=self._max_context(graph),
            start_s=settings.start_timeout_s,
            inactivity_s=settings.inactivity_s,
            allow_faults=settings.allow_faults,
            hosts=self._hosts,
        )

    def _scheduler_settings(self) -> SchedulerSettings:
        settings = self._settings
        circuit = BreakerSettings(
            open_s=settings.open_s,
            restart_open_s=settings.restart_open_s,
            failure_threshold=settings.failure_threshold,
            success_threshold=settings.success_threshold,
            canary_timeout_s=settings.canary_timeout_s,
            start_timeout_s=settings.start_timeout_s,
        )
        standby = "on_demand" if settings.isolation == "none" else settings.standby
        return SchedulerSettings(standby=standby, breaker=circuit)


def _make_loader(settings: Settings, compiler: Compiler, threads: int, *, clock: Clock, emit: Emit) -> ModelLoader:
    return ModelLoader(
        cache=make_cache(settings, clock=clock, emit=emit),
        compiler=compiler,
        scratch=Path(settings.child_env.get("TMPDIR") or "/tmp"),  # noqa: S108 - its folders are private
        token=_token,
        machine=read_machine(),
        clock=clock,
        emit=emit,
        max_context=settings.max_context,
        threads=threads,
    )


def make_cache(settings: Settings, *, clock: Clock, emit: Emit) -> GraphCache:
    """The store's graph cache."""
    return GraphCache(
        settings.store / "graphs",
        limit_bytes=settings.graph_cache_bytes,
        boot=read_boot_id(),
        clock=clock,
        token=_token,
        emit=emit,
    )


def _token() -> str:
    return os.urandom(4).hex()


def _rng() -> float:
    """A number in [0, 1), for jitter; `random` would be another import on the way to an answer."""
    return int.from_bytes(os.urandom(4)) / (1 << 32)


def _tier_of(graph: LoadedGraph, engine: str) -> Tier:
    """The standby of a packed model is mapped: the same numbers from the same file, without a second copy of it."""
    return "mapped" if engine == "standby" and graph.tier in COPIES else graph.tier


def _digests(installed: InstalledModel) -> dict[str, Digest]:
    return {file.path: file.used for file in installed.files if file.used is not None}


_RAW_CANARY_IDS = 8


def _canary(graph: LoadedGraph) -> Canary:
    """The probe of a circuit: the graph's own self-test; the raw graph has none and is asked when it is healthy, for
    what comes after ids from all over its vocabulary. Not after words: the engine need not wait for the tokenizer."""
    if graph.tier == "raw":
        count = stated_vocab_size(graph.model_folder)
        return Canary([(2 + index * 7919) % count for index in range(_RAW_CANARY_IDS)])
    vector = read_header(graph.graph_folder).self_test
    logit, tolerance = vector.expected_micro[0] / 1e6, vector.tolerance_micro / 1e6
    return Canary(vector.prompt_ids, vector.expected_ids, expected_logit=logit, tolerance=tolerance)
