"""Find the graph of a model: in memory, on disk, else compile it (row R3; prototype: `loadModel`, `getCacheStats`).

    loader = ModelLoader(cache=..., compiler=..., scratch=..., token=..., machine=read_machine(), clock=..., emit=...,
                         max_context=2048, threads=2)
    graph = await loader.load("dialogue", "1.0.0", folder, digests, tier="mapped")
    ...                        # give it to engine hosts; they open the files themselves
    loader.release(graph)

Rules: (1) the key is made of the verified manifest's digests, so nothing is hashed twice and a model that changed has
another key; (2) a graph that was handed out stays, pinned, until it is released, and the three that were released last
stay too. How a graph is found on disk or made is `graph_maker`'s.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from kensho.base.clock import Clock, Seconds
from kensho.base.events import Emit
from kensho.base.ids import Digest, GraphKey
from kensho.base.lru import Lru
from kensho.base.structs import Struct, replace
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.graph_hashing import verify_steps
from kensho.runtime.cache.graph_identity import RAW_RECIPE, key_fields, stated_context
from kensho.runtime.cache.graph_maker import GraphCompiler, GraphMaker, MadeGraph
from kensho.runtime.cache.header import DEFAULT_MAX_POSITIONS, KeyFields, graph_key, read_header
from kensho.runtime.cache.loaded_graph import LoadedGraph, Origin
from kensho.runtime.cache.temp_folder import Token
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.hosts.frames import Tier
from kensho.runtime.system.machine import Machine

KEPT_GRAPHS = 3
"""The prototype's memory cache: LRU of 3."""
_PAUSES = 9
"""What a verification in the background waits, in times of what it has just worked."""


class LoaderStats(Struct):
    """How often a graph was found where (row R5). A compile is a miss of memory and disk."""

    memory: int = 0
    disk: int = 0
    compile: int = 0
    raw: int = 0


class _Held(Struct, frozen=False):
    """A graph that stays. `users`: handed out and not yet released."""

    made: MadeGraph
    users: int = 0


class _Asked(Struct):
    """One question for a graph."""

    model: str
    version: str
    folder: Path
    tier: Tier
    fields: KeyFields
    key: GraphKey
    limit: int
    began_s: Seconds


class ModelLoader:
    """Hands out graphs. Used from one event loop; disk work is done in threads, compiling in a child process."""

    def __init__(
        self,
        *,
        cache: GraphCache,
        compiler: GraphCompiler,
        scratch: Path,
        token: Token,
        machine: Machine,
        clock: Clock,
        emit: Emit,
        max_context: int,
        threads: int,
    ) -> None:
        """`scratch`: where to work when the cache's disk refuses; `max_context`: the longest that will be served."""
        self._maker = GraphMaker(cache=cache, compiler=compiler, scratch=scratch, token=token, clock=clock, emit=emit)
        self._machine = machine
        self._clock = clock
        self._max_positions = max(max_context, DEFAULT_MAX_POSITIONS)
        self._threads = threads
        self._in_use: dict[GraphKey, _Held] = {}
        self._idle: Lru[GraphKey, _Held] = Lru(KEPT_GRAPHS)
        self._lanes: dict[GraphKey, asyncio.Lock] = {}
        self._stats = LoaderStats()

    @property
    def stats(self) -> LoaderStats:
        return self._stats

    async def find(
        self, model: str, version: str, folder: Path, digests: Mapping[str, Digest], *, tier: Tier
    ) -> LoadedGraph | None:
        """The graph if memory or disk have it; None: it has to be made, or is being made now. Release what you get."""
        asked = await self._ask(model, version, folder, digests, tier)
        lane = self._lane(asked)
        if lane.locked():
            return None
        async with lane:
            source: Origin = "memory"
            held = self._held(asked.key)
            if held is None and tier != "raw":
                made = await self._maker.find(asked.key)
                if made:
                    held, source = _Held(made), "disk"
            return None if held is None else self._hand_out(asked, held, source)

    async def load(
        self,
        model: str,
        version: str,
        folder: Path,
        digests: Mapping[str, Digest],
        *,
        tier: Tier,
        is_background: bool = False,
        is_idle: bool = False,
    ) -> LoadedGraph:
        """The graph of the model in `folder`, whose files have these digests (path -> SHA-256, from its manifest).

        Tier raw is built, never compiled: exact, in 0.1 s, and slower to run. A compile in the background leaves most
        of the processors to whoever wants them, an idle one all, and the `Compiler` can hold it. Raises ModelError,
        CompileFailed (after a second attempt), NotEnoughSpace and StorageError (not even the scratch folder). Release
        what you get.
        """
        asked = await self._ask(model, version, folder, digests, tier)
        job = CompileJob(
            model,
            version,
            str(folder),
            "",
            asked.fields.max_positions,
            self._threads,
            None if tier == "raw" else asked.fields,
            is_background=is_background,
            is_idle=is_idle,
        )
        async with self._lane(asked):
            source: Origin = "memory"
            held = self._held(asked.key)
            if held is None:
                if tier == "raw":
                    made, source = await self._maker.build_raw(job), "raw"
                else:
                    made, source = await self._maker.find_or_make(asked.key, job)
                held = _Held(made)
            return self._hand_out(asked, held, source)

    def release(self, graph: LoadedGraph) -> None:
        """The graph is not needed any more. It is kept for a while, unless three others were released later."""
        held = self._in_use.get(graph.key)
        if held is None:
            return
        held.users -= 1
        if held.users == 0:
            del self._in_use[graph.key]
            for _, evicted in self._idle.put(graph.key, held):
                evicted.made.close()

    async def confirm(self, graph: LoadedGraph) -> None:
        """The graph, which was not proved, has passed its self-test. Raises no error."""
        held = self._in_use.get(graph.key)
        if held:
            held.made = replace(held.made, is_proved=True)
        await self._maker.confirm(graph.key)

    async def verify(self, graph: LoadedGraph) -> None:
        """Hash a graph that is in use, all of it, so slowly that nobody notices: 10 % of one processor.

        Raises Damaged: `invalidate` it then, and end who has it loaded.
        """
        if graph.tier == "raw":
            return  # it has no header: its weights are the delivered ones, which have a scrub of their own
        header = await asyncio.to_thread(read_header, graph.graph_folder)
        steps = verify_steps(graph.graph_folder, header)
        while True:
            began_s = self._clock.monotonic_s()
            if await asyncio.to_thread(next, steps, None) is None:
                return
            await asyncio.sleep(_PAUSES * (self._clock.monotonic_s() - began_s))

    async def invalidate(self, graph: LoadedGraph, reason: str) -> None:
        """The graph proved bad in use, whatever its hashes say: forget it, so that the next load compiles it again."""
        held = self._in_use.pop(graph.key, None) or self._idle.pop(graph.key)
        if held:
            held.made.close()
        if graph.tier != "raw":
            await self._maker.drop(graph.key, reason)

    def close(self) -> None:
        """Forget everything: pins are given back, private folders removed. Idempotent."""
        for key in list(self._in_use):
            self._in_use.pop(key).made.close()
        for key in self._idle:
            held = self._idle.pop(key)
            if held:
                held.made.close()

    async def _ask(self, model: str, version: str, folder: Path, digests: Mapping[str, Digest], tier: Tier) -> _Asked:
        began_s = self._clock.monotonic_s()
        fields = key_fields(digests, self._machine, self._max_positions)
        if tier == "raw":
            fields = replace(fields, recipe=RAW_RECIPE)
        limit = min(self._max_positions, await asyncio.to_thread(stated_context, folder))
        return _Asked(model, version, folder, tier, fields, graph_key(fields), limit, began_s)

    def _lane(self, asked: _Asked) -> asyncio.Lock:
        return self._lanes.setdefault(asked.key, asyncio.Lock())

    def _held(self, key: GraphKey) -> _Held | None:
        return self._in_use.get(key) or self._idle.pop(key)

    def _hand_out(self, asked: _Asked, held: _Held, source: Origin) -> LoadedGraph:
        held.users += 1
        self._in_use[asked.key] = held
        self._stats = replace(self._stats, **{source: getattr(self._stats, source) + 1})
        seconds = self._clock.monotonic_s() - asked.began_s
        return LoadedGraph(
            asked.model,
            asked.version,
            asked.key,
            held.made.folder,
            asked.folder,
            asked.tier,
            asked.limit,
            source,
            seconds,
            held.made.is_proved,
        )
