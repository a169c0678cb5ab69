"""Compile a model in a child process that can be killed (row R1; prototype: `loadModel` compiling).

    compiler = Compiler(env={}, stall_s=60.0, emit=emit)
    await compiler.compile(job)

A child, because a compile takes gigabytes that must be given back, may be killed by the kernel, and must not outlive
its asker: cancelling `compile` kills it. Each report of the child becomes a `CompileStage` event. A stage that does not
come on for `stall_s` is taken for hung; since `done` rises to `total`, that bounds every stage.

Compiles that are only guesses (`CompileJob.is_idle`) can be held while somebody waits for something else: the child is
stopped by the kernel at once, wherever it is, and goes on from there.
"""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping

from kensho.base.clock import Seconds
from kensho.base.errors import CompileFailed
from kensho.base.events import CompileStage, Emit
from kensho.runtime.compiling.compile_job import CompileJob, dump_job
from kensho.runtime.hosts.error_wire import restore_error
from kensho.runtime.system.process import Child, Ended, spawn
from kensho.runtime.system.to_the_end import to_the_end

MAX_LINE_BYTES = 1 << 20
"""More than `error_wire` lets an error be."""
_GRACE_S: Seconds = 0.5
_REAP_S: Seconds = 5.0
_IDLE_PATIENCE = 20
"""A compile that gets only what nobody wants is taken for hung after so many times `stall_s`: 20 minutes, usually."""


class Compiler:
    """Starts one child for each compile. `env` is the child's whole environment."""

    def __init__(self, *, env: Mapping[str, str], stall_s: Seconds, emit: Emit) -> None:
        self._env = env
        self._stall_s = stall_s
        self._emit = emit
        self._idle: set[Child] = set()
        self._is_held = False
        self._changes = 0

    def hold_idle(self, is_held: bool) -> None:
        """Stop the compiles that are only guesses, those that start later too, or let them go on. Idempotent."""
        if is_held != self._is_held:
            self._is_held = is_held
            self._changes += 1
            for child in self._idle:
                self._signal(child)

    async def compile(self, job: CompileJob, on_stage: Callable[[CompileStage], None] | None = None) -> None:
        """Make the graph of `job` in its output folder. `on_stage` also gets each report.

        Raises CompileFailed (hung, killed, a result that is not good enough; `stage` is a fact), or what the child
        raised: ModelError, NotEnoughSpace, StorageError. No process is left in any case, cancelled ones included.
        """
        read_end, write_end = os.pipe()
        try:
            child = spawn(
                "kensho.runtime.compiling.compile_child",
                (str(write_end), dump_job(job)),
                pass_fds=(write_end,),
                env=self._env,
            )
        except BaseException:
            os.close(read_end)
            raise
        finally:
            os.close(write_end)
        watch = _Watch(job.model)
        if job.is_idle:
            self._idle.add(child)
            self._signal(child)
        try:
            await self._follow(read_end, watch, on_stage, self._stall_s * (_IDLE_PATIENCE if job.is_idle else 1))
        except BaseException:
            # Cancelled, or the child's own error: in any case it is not needed any more.
            child.kill()
            raise
        finally:
            self._idle.discard(child)
            ended = await to_the_end(_end(child, watch))
        if not watch.is_over:
            raise self._failed(watch, ended)

    async def _follow(
        self, read_end: int, watch: "_Watch", on_stage: Callable[[CompileStage], None] | None, stall_s: Seconds
    ) -> None:
        reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
        loop = asyncio.get_running_loop()
        pipe = os.fdopen(read_end, "rb", buffering=0)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            while not watch.is_over:
                line = await self._line(reader, stall_s)
                if not line:
                    return
                if event := watch.read(line):
                    self._emit(event)
                    if on_stage:
                        on_stage(event)
        except TimeoutError:
            watch.is_hung = True
        finally:
            transport.close()

    async def _line(self, reader: asyncio.StreamReader, stall_s: Seconds) -> bytes:
        """The next one. TimeoutError when none came for `stall_s`, in which nobody held the child."""
        while True:
            changes = self._changes
            try:
                async with asyncio.timeout(stall_s):
                    return await reader.readline()
            except TimeoutError:
                if not self._is_held and self._changes == changes:
                    raise

    def _signal(self, child: Child) -> None:
        """A held child that starts just now is stopped too; one that has ended is not there to be hit."""
        if child.ended() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.descriptor, signal.SIGSTOP if self._is_held else signal.SIGCONT)

    def _failed(self, watch: "_Watch", ended: Ended) -> CompileFailed:
        why = f"no progress for {self._stall_s:g} s" if watch.is_hung else ended.reason
        words = f" ({ended.last_words})" if ended.last_words else ""
        return CompileFailed(
            f"compiling {watch.model} failed in {watch.stage}: the compiler ended: {why}{words}",
            advice="it is tried again; free memory if the system killed it",
            stage=watch.stage,
            stderr=ended.stderr,
        )


class _Watch:
    """What is known of the child from its lines."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.stage = "parsing"
        self.is_over = False
        self.is_hung = False

    def read(self, line: bytes) -> CompileStage | None:
        """Take one line. Raises the error that the child sends."""
        try:
            document = json.loads(line)
        except ValueError as error:
            raise CompileFailed(
                f"compiling {self.model} failed in {self.stage}: the compiler's report is garbled",
                advice="it is tried again",
                stage=self.stage,
            ) from error
        match document:
            case {"stage": str(stage), "done": int(done), "total": int(total), "unit": str(unit)}:
                self.stage = stage
                return CompileStage(model=self.model, stage=stage, done=done, total=total, unit=unit)
            case {"error": dict(described)}:
                self.is_over = True
                raise restore_error(described)
            case _:
                self.is_over = True
        return None


async def _end(child: Child, watch: _Watch) -> Ended:
    """Reap the child, on every way out. One that closed its pipe is given a moment to end by itself."""
    ended = None if watch.is_hung else await child.ended_within(_GRACE_S)
    if ended is None:
        child.kill()
        ended = await child.ended_within(_REAP_S)
    return ended or child.reap(0)
