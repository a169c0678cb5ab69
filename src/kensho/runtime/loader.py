"""Find the graph of a model: in memory, on disk, else compile it (row R3; prototype: `loadModel`, `getCacheStats`).

    loader = ModelLoader(cache=..., compiler=..., scratch=..., token=..., machine=read_machine(), clock=..., emit=...,
                         max_context=2048, threads=2)
    graph = await loader.load("dialogue", "1.0.0", folder, digests, tier="mapped")
    ...                        # give it to engine hosts; they open the files themselves
    loader.release(graph)

Rules: (1) the key is made of the verified manifest's digests, so nothing is hashed twice and a model that changed has
another key; (2) a graph that was handed out stays, pinned, until it is released, and the three that were released last
stay too; (3) one compile a key, in this process and in all; (4) what the graph cache's disk refuses is said once and
worked around in a private folder; (5) a failed compile is tried once more; (6) cancelling leaves no process.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import CompileFailed, Damaged, StorageError
from kensho.base.events import CompileFinished, CompileRetried, Emit, GraphCacheUnavailable
from kensho.base.ids import Digest, GraphKey
from kensho.base.lru import Lru
from kensho.runtime.compile_job import CompileJob
from kensho.runtime.frames import Tier
from kensho.runtime.graph_cache import GraphCache, Hit
from kensho.runtime.graph_identity import RAW_RECIPE, key_fields, stated_context
from kensho.runtime.header import DEFAULT_MAX_POSITIONS, KeyFields, graph_key, read_header, verify_graph
from kensho.runtime.loaded_graph import LoadedGraph, Origin
from kensho.runtime.machine import Machine
from kensho.runtime.pins import FileLock
from kensho.runtime.temp_folder import TempFolder, Token, sweep

KEPT_GRAPHS = 3
"""The prototype's memory cache: LRU of 3."""
_ATTEMPTS = 2
_LOCK_POLL_S: Seconds = 0.05


class GraphCompiler(Protocol):
    """What is needed of `compiler.Compiler`."""

    async def compile(self, job: CompileJob) -> None: ...


@dataclass(frozen=True, slots=True)
class LoaderStats:
    """How often a graph was found where (row R5). A compile is a miss of memory and disk."""

    memory: int = 0
    disk: int = 0
    compile: int = 0
    raw: int = 0


@dataclass(slots=True)
class _Held:
    """A graph whose files stay until `close`. `users`: handed out and not yet released."""

    folder: Path
    close: Callable[[], None]
    users: int = 0


@dataclass(frozen=True, slots=True)
class _Asked:
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
        self._cache = cache
        self._compiler = compiler
        self._scratch = scratch
        self._token = token
        self._machine = machine
        self._clock = clock
        self._emit = emit
        self._max_positions = max(max_context, DEFAULT_MAX_POSITIONS)
        self._threads = threads
        self._in_use: dict[GraphKey, _Held] = {}
        self._idle: Lru[GraphKey, _Held] = Lru(KEPT_GRAPHS)
        self._lanes: dict[GraphKey, asyncio.Lock] = {}
        self._has_said_unavailable = False
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
                found = await asyncio.to_thread(self._cache.lookup, asked.key)
                if isinstance(found, Hit):
                    held, source = _Held(found.folder, found.pin.close), "disk"
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
    ) -> LoadedGraph:
        """The graph of the model in `folder`, whose files have these digests (path -> SHA-256, from its manifest).

        Tier raw is built, never compiled: exact, in 0.1 s, and slower to run. A compile in the background leaves the
        processors to whoever wants them. Raises ModelError, CompileFailed (after a second attempt), NotEnoughSpace and
        StorageError (not even the scratch folder). Release what you get.
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
        )
        async with self._lane(asked):
            source: Origin = "memory"
            held = self._held(asked.key)
            if held is None:
                held, source = await (self._build_raw(job) if tier == "raw" else self._find(asked.key, job))
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
                evicted.close()

    async def invalidate(self, graph: LoadedGraph, reason: str) -> None:
        """The graph proved bad in use, whatever its hashes say: forget it, so that the next load compiles it again."""
        held = self._in_use.pop(graph.key, None) or self._idle.pop(graph.key)
        if held:
            held.close()
        if graph.tier != "raw":
            try:
                lock = await self._lock(graph.key)
                await asyncio.to_thread(self._cache.drop, graph.key, reason)
                lock.close()
            except StorageError as error:
                self._say_unavailable(error)

    def close(self) -> None:
        """Forget everything: pins are given back, private folders removed. Idempotent."""
        for key in list(self._in_use):
            self._in_use.pop(key).close()
        for key in self._idle:
            held = self._idle.pop(key)
            if held:
                held.close()

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
            held.folder,
            asked.folder,
            asked.tier,
            asked.limit,
            source,
            seconds,
        )

    async def _find(self, key: GraphKey, job: CompileJob) -> tuple[_Held, Origin]:
        found = await asyncio.to_thread(self._cache.lookup, key)
        if isinstance(found, Hit):
            return _Held(found.folder, found.pin.close), "disk"
        try:
            lock = await self._lock(key)
        except StorageError as error:
            return await self._compile_privately(job, error), "compile"
        try:
            # Another process may have made it while we waited.
            found = await asyncio.to_thread(self._cache.lookup, key)
            if isinstance(found, Hit):
                return _Held(found.folder, found.pin.close), "disk"
            if found.reason == "format_newer":
                return await self._compile_privately(job, StorageError(found.detail)), "compile"
            return await self._compile(key, job, None if found.reason == "absent" else found.detail), "compile"
        finally:
            lock.close()

    async def _compile(self, key: GraphKey, job: CompileJob, damage: str | None) -> _Held:
        """Compile into the cache, under the key's lock."""

        async def publish(temp: TempFolder) -> _Held:
            try:
                hit = await asyncio.to_thread(self._cache.publish, key, temp)
            except Damaged:
                raise
            except StorageError as error:
                # Complete and verified it is, only not at its place: serve it from where it is.
                self._say_unavailable(error)
                return _Held(temp.path, temp.close)
            temp.close()
            return _Held(hit.folder, hit.pin.close)

        try:
            if damage is not None:
                await asyncio.to_thread(self._cache.drop, key, damage)
            return await self._attempts(job, self._cache.make_temp, publish)
        except StorageError as error:
            return await self._compile_privately(job, error)

    async def _compile_privately(self, job: CompileJob, why: StorageError) -> _Held:
        async def keep(temp: TempFolder) -> _Held:
            await asyncio.to_thread(lambda: verify_graph(temp.path, read_header(temp.path)))
            return _Held(temp.path, temp.close)

        self._say_unavailable(why)
        return await self._attempts(job, self._make_scratch, keep)

    async def _build_raw(self, job: CompileJob) -> tuple[_Held, Origin]:
        async def keep(temp: TempFolder) -> _Held:
            return _Held(temp.path, temp.close)

        try:
            return await self._attempts(job, self._cache.make_temp, keep), "raw"
        except StorageError as error:
            self._say_unavailable(error)
            return await self._attempts(job, self._make_scratch, keep), "raw"

    async def _attempts(
        self, job: CompileJob, make_temp: Callable[[], TempFolder], finish: Callable[[TempFolder], Awaitable[_Held]]
    ) -> _Held:
        """Do the job in a temporary folder and `finish` it; a compile that fails is tried once more."""
        for left in reversed(range(_ATTEMPTS)):
            began_s = self._clock.monotonic_s()
            temp = await asyncio.to_thread(make_temp)
            try:
                await self._compiler.compile(replace(job, out_folder=str(temp.path)))
                try:
                    held = await finish(temp)
                except Damaged as error:
                    raise CompileFailed(
                        error.message, advice="look at this machine's disk and memory", stage="finalizing"
                    ) from error
            except CompileFailed as error:
                temp.close()
                stage = str(error.facts.get("stage", ""))
                self._emit(CompileRetried(model=job.model, version=job.version, stage=stage, reason=error.message))
                if not left:
                    raise
            except BaseException:
                temp.close()
                raise
            else:
                self._say_finished(job, held.folder, began_s)
                return held
        raise AssertionError("the last attempt returns or raises")

    async def _lock(self, key: GraphKey) -> FileLock:
        while True:
            lock = await asyncio.to_thread(self._cache.compile_lock, key)
            if lock:
                return lock
            # The lock of another process is no event of the loop.
            await asyncio.sleep(_LOCK_POLL_S)

    def _make_scratch(self) -> TempFolder:
        try:
            sweep(self._scratch)
            return TempFolder.make(self._scratch, self._token)
        except OSError as error:
            raise StorageError(
                f"no place to compile: {self._scratch} cannot be written ({error.strerror})",
                advice="free space, or use the raw tier",
            ) from error

    def _say_unavailable(self, error: StorageError) -> None:
        if not self._has_said_unavailable:
            self._has_said_unavailable = True
            self._emit(GraphCacheUnavailable(reason=error.message))

    def _say_finished(self, job: CompileJob, folder: Path, began_s: Seconds) -> None:
        if job.key is None:
            return
        header = read_header(folder)
        self._emit(
            CompileFinished(
                model=job.model,
                version=job.version,
                key=graph_key(header.key),
                seconds=self._clock.monotonic_s() - began_s,
                size_bytes=header.size_bytes,
            )
        )
