"""Find a graph on disk or make it, whatever the disk and the compiler do (rows R3, R7, R8).

Rules: (1) one compile a key, in this process and in all; who waits for another process sees its progress; (2) a failed
compile is tried once more, and after the third failure not for an hour; (3) trouble with the disk that may pass is
tried again; what it goes on refusing is said once and worked around in a private folder; (4) cancelling leaves no
process and no folder; (5) why a graph was not found is said, with the key fields that differ.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import CompileFailed, Damaged, StorageError
from kensho.base.events import (
    CompileFinished,
    CompileRetried,
    CompileStage,
    Emit,
    GraphCacheUnavailable,
    GraphMissed,
    RecompileStorm,
)
from kensho.base.ids import GraphKey
from kensho.base.structs import Struct, replace
from kensho.runtime.cache.graph_cache import GraphCache, Hit, Miss
from kensho.runtime.cache.graph_hashing import verify_graph
from kensho.runtime.cache.graph_kin import find_kin
from kensho.runtime.cache.header import graph_key, read_header
from kensho.runtime.cache.loaded_graph import Origin
from kensho.runtime.cache.pins import FileLock
from kensho.runtime.cache.temp_folder import TempFolder, Token, sweep
from kensho.runtime.compiling.compile_job import CompileJob

_ATTEMPTS = 2
_LOCK_POLL_S: Seconds = 0.05
_DELAYS_S: tuple[Seconds, ...] = (0.05, 0.25)
"""Between attempts on a disk in trouble: somebody waits for the answer, and without the cache it comes too."""

T = TypeVar("T")


class GraphCompiler(Protocol):
    """What is needed of `compiler.Compiler`."""

    async def compile(self, job: CompileJob, on_stage: Callable[[CompileStage], None] | None = None) -> None: ...


class MadeGraph(Struct):
    """A complete, verified graph. Its files stay until `close`."""

    folder: Path
    close: Callable[[], None]
    is_proved: bool = True
    """It has passed its self-test in this boot of the machine: just now, or said by the cache."""


class GraphMaker:
    """Used from one event loop; disk work is done in threads, compiling in a child process."""

    def __init__(
        self,
        *,
        cache: GraphCache,
        compiler: GraphCompiler,
        scratch: Path,
        token: Token,
        clock: Clock,
        emit: Emit,
    ) -> None:
        """`scratch`: where to work when the cache's disk refuses."""
        self._cache = cache
        self._compiler = compiler
        self._scratch = scratch
        self._token = token
        self._clock = clock
        self._emit = emit
        self._has_said_unavailable = False

    async def find(self, key: GraphKey) -> MadeGraph | None:
        """The entry of the graph cache, if there is a good one."""
        found = await self._lookup(key)
        return _cached(found) if isinstance(found, Hit) else None

    async def confirm(self, key: GraphKey) -> None:
        """The entry has passed its self-test. Raises no error."""
        await asyncio.to_thread(self._cache.confirm, key)

    async def drop(self, key: GraphKey, reason: str) -> None:
        """Remove the entry, so that it is made anew. What the disk refuses is said."""
        try:
            lock = await self._lock(key, None)
            try:
                await self._patiently(lambda: self._cache.drop(key, reason))
            finally:
                lock.close()
        except StorageError as error:
            self._say_unavailable(error)

    async def find_or_make(self, key: GraphKey, job: CompileJob) -> tuple[MadeGraph, Origin]:
        """The entry, compiled if need be. Raises ModelError, CompileFailed, NotEnoughSpace, StorageError."""
        found = await self._lookup(key)
        if isinstance(found, Hit):
            return _cached(found), "disk"
        try:
            lock = await self._lock(key, job)
        except StorageError as error:
            return await self._compile_privately(job, error), "compile"
        try:
            # Another process may have made it while we waited.
            found = await self._lookup(key)
            if isinstance(found, Hit):
                return _cached(found), "disk"
            await self._refuse_barred(key, job)
            await self._explain(found, job)
            if found.reason == "format_newer":
                return await self._compile_privately(job, StorageError(found.detail)), "compile"
            damage = None if found.reason == "absent" else found.detail
            return await self._compile(key, job, damage, lock), "compile"
        finally:
            lock.close()

    async def build_raw(self, job: CompileJob) -> MadeGraph:
        """The exact graph, which no cache keeps. Raises ModelError, NotEnoughSpace, StorageError."""

        async def keep(temp: TempFolder) -> MadeGraph:
            return MadeGraph(temp.path, temp.close)

        try:
            return await self._attempts(job, self._cache.make_temp, keep)
        except StorageError as error:
            self._say_unavailable(error)
            return await self._attempts(job, self._make_scratch, keep)

    async def _compile(self, key: GraphKey, job: CompileJob, damage: str | None, lock: FileLock) -> MadeGraph:
        """Compile into the cache, under the key's lock, and note on it how far it is."""

        async def publish(temp: TempFolder) -> MadeGraph:
            try:
                hit = await self._patiently(lambda: self._cache.publish(key, temp))
            except Damaged:
                raise
            except StorageError as error:
                # Complete and verified it is, only not at its place: serve it from where it is.
                self._say_unavailable(error)
                return MadeGraph(temp.path, temp.close)
            temp.close()
            return _cached(hit)

        try:
            if damage is not None:
                await self._patiently(lambda: self._cache.drop(key, damage))
            return await self._attempts(job, self._cache.make_temp, publish, key, lock)
        except StorageError as error:
            return await self._compile_privately(job, error)

    async def _compile_privately(self, job: CompileJob, why: StorageError) -> MadeGraph:
        async def keep(temp: TempFolder) -> MadeGraph:
            await asyncio.to_thread(lambda: verify_graph(temp.path, read_header(temp.path)))
            return MadeGraph(temp.path, temp.close)

        self._say_unavailable(why)
        return await self._attempts(job, self._make_scratch, keep)

    async def _attempts(
        self,
        job: CompileJob,
        make_temp: Callable[[], TempFolder],
        finish: Callable[[TempFolder], Awaitable[MadeGraph]],
        key: GraphKey | None = None,
        lock: FileLock | None = None,
    ) -> MadeGraph:
        """Do the job in a temporary folder and `finish` it; a compile that fails is tried once more.

        Failures are remembered under `key`, the progress is noted on `lock`.
        """
        for left in reversed(range(_ATTEMPTS)):
            began_s = self._clock.monotonic_s()
            temp = await self._patiently(make_temp)
            try:
                on_stage = None if lock is None else partial(_note_stage, lock)
                await self._compiler.compile(replace(job, out_folder=str(temp.path)), on_stage)
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
                if key is not None:
                    wall_s, name = self._clock.wall_s(), f"{job.model} {job.version}"
                    await asyncio.to_thread(self._cache.note_failure, key, wall_s, stage, error.message, name)
                if not left:
                    raise
            except BaseException:
                temp.close()
                raise
            else:
                seconds = self._clock.monotonic_s() - began_s
                self._say_finished(job, held.folder, seconds)
                if key is not None:
                    await asyncio.to_thread(self._cache.count, seconds, is_hit=False)
                return held
        raise AssertionError("the last attempt returns or raises")

    async def _lock(self, key: GraphKey, job: CompileJob | None) -> FileLock:
        seen = b""
        while True:
            lock = await self._patiently(lambda: self._cache.compile_lock(key))
            if lock:
                lock.note(b"")
                return lock
            note = await asyncio.to_thread(self._cache.progress, key)
            if job and note != seen and (stage := _parse_stage(note, job)):
                self._emit(stage)
            seen = note
            # The lock of another process is no event of the loop.
            await asyncio.sleep(_LOCK_POLL_S)

    async def _lookup(self, key: GraphKey) -> Hit | Miss:
        for delay_s in (*_DELAYS_S, None):
            began_s = self._clock.monotonic_s()
            found = await asyncio.to_thread(self._cache.lookup, key)
            if isinstance(found, Hit):
                seconds = self._clock.monotonic_s() - began_s
                await asyncio.to_thread(self._cache.count, seconds, is_hit=True)
                break
            if found.reason != "unreadable" or delay_s is None:
                break
            await asyncio.sleep(delay_s)
        return found

    async def _patiently(self, work: Callable[[], T]) -> T:
        """Blocking work on the disk, tried again while what it refuses may pass (row R8)."""
        for delay_s in _DELAYS_S:
            try:
                return await asyncio.to_thread(work)
            except StorageError as error:
                if not error.facts.get("may_pass"):
                    raise
            await asyncio.sleep(delay_s)
        return await asyncio.to_thread(work)

    async def _refuse_barred(self, key: GraphKey, job: CompileJob) -> None:
        failures = await asyncio.to_thread(self._cache.failures, key)
        barred_s = failures.barred_s(self._clock.wall_s()) if failures else 0.0
        if failures and barred_s:
            raise CompileFailed(
                f"compiling {job.model} failed {failures.count} times, last in {failures.stage}: {failures.reason}",
                advice=f"it is tried again in {barred_s / 60:.0f} min, or after kensho graphs clear",
                stage=failures.stage,
            )

    async def _explain(self, missed: Miss, job: CompileJob) -> None:
        """Say why the graph has to be made."""
        if job.key is None:
            return
        kin = find_kin(job.key, await asyncio.to_thread(self._cache.keys))
        differing = ", ".join(kin.differing)
        self._emit(GraphMissed(model=job.model, version=job.version, reason=missed.reason, differing=differing))
        if kin.is_storm:
            self._emit(RecompileStorm(model=job.model, version=job.version, graphs=kin.relatives, differing=differing))

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

    def _say_finished(self, job: CompileJob, folder: Path, seconds: Seconds) -> None:
        if job.key is None:
            return
        header = read_header(folder)
        self._emit(
            CompileFinished(
                model=job.model,
                version=job.version,
                key=graph_key(header.key),
                seconds=seconds,
                size_bytes=header.size_bytes,
            )
        )


def _cached(hit: Hit) -> MadeGraph:
    return MadeGraph(hit.folder, hit.pin.close, hit.is_proved)


def _note_stage(lock: FileLock, stage: CompileStage) -> None:
    lock.note(json.dumps([stage.stage, stage.done, stage.total, stage.unit]).encode())


def _parse_stage(note: bytes, job: CompileJob) -> CompileStage | None:
    """What another process has noted; anything odd is nothing."""
    try:
        stage, done, total, unit = json.loads(note)
    except (ValueError, TypeError, RecursionError):
        return None
    if not (isinstance(stage, str) and type(done) is type(total) is int and isinstance(unit, str)):
        return None
    return CompileStage(model=job.model, stage=stage[:40], done=done, total=total, unit=unit[:40])
