"""`InProcessEngine`: an engine in a thread of this program (`isolation="none"`; satisfies `base.inference.Engine`).

For scripts and notebooks where a second process is in the way. What it cannot give: a crash of the engine is a crash of
the program, and a computation that hangs cannot be ended, only left behind with its thread and memory. Faults are not
for rehearsal here, since half of them would end the program.

The session is made, used and freed on one thread of its own; the event loop is never blocked. `kill` drops the session:
streams end at once with EngineCrashed, the thread ends after the step it is in.
"""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import ConfigError, EngineCrashed, EngineError, EngineHung, KenshoError
from kensho.base.events import Emit, EngineLost, EngineStarted, GraphLoaded
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.frames import FaultKind, Generate
from kensho.runtime.hosts.host import PREFILL_ID_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kensho.runtime.engine.generation import Generator

END_S: Seconds = 2.0
"""How long `kill` and `close` wait for the thread: a step, unless it hangs."""


class InProcessEngine:
    """One loaded model on one thread. Used from one event loop."""

    def __init__(
        self,
        name: str,
        graph: LoadedGraph,
        *,
        clock: Clock,
        emit: Emit,
        threads: int,
        max_context: int,
        start_s: Seconds,
        inactivity_s: Seconds,
    ) -> None:
        """See `EngineHost`; `threads` are those of ONNX Runtime."""
        self._name = name
        self._graph = graph
        self._clock = clock
        self._emit = emit
        self._threads = threads
        self._max_context = min(max_context, graph.max_positions)
        self._start_s = start_s
        self._inactivity_s = inactivity_s
        self._worker: _Worker | None = None
        self._starting = asyncio.Lock()
        self._lane = asyncio.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def graph(self) -> LoadedGraph:
        """What it serves."""
        return self._graph

    @property
    def pid(self) -> int | None:
        """None: it has no process of its own."""
        return None

    @property
    def is_alive(self) -> bool:
        return self._worker is not None and self._worker.is_ready and not self._worker.is_dropped

    async def start(self) -> None:
        """Load the model on a new thread. Idempotent. Raises EngineHung after `start_s`, EngineError, Damaged."""
        async with self._starting:
            if self.is_alive:
                return
            began_s = self._clock.monotonic_s()
            graph = self._graph
            self._worker = worker = _Worker(self._name, graph, self._max_context, self._threads)
            try:
                async with asyncio.timeout(self._start_s):
                    await worker.ready()
            except TimeoutError as error:
                raise EngineHung(
                    f"engine '{self._name}' did not load {graph.model} within {self._start_s:g} s",
                    advice="raise start_timeout_s, or look at the load of this machine",
                    engine=self._name,
                ) from error
            finally:
                if not worker.is_ready:
                    worker.drop()
            seconds = self._clock.monotonic_s() - began_s
            self._emit(EngineStarted(engine=self._name, pid=os.getpid(), seconds=seconds))
            self._emit(
                GraphLoaded(
                    engine=self._name,
                    model=graph.model,
                    version=graph.version,
                    source=graph.source,
                    tier=graph.tier,
                    seconds=seconds,
                )
            )

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        """See `Engine.generate` and `EngineHost.generate`, which it does not differ from."""
        async with self._lane:
            worker = self._running()
            request = Generate(0, tuple(prompt_ids), tuple(accepted_ids), sampling)
            stream = _Stream(worker)
            stream.begin(
                lambda generator: generator.run(request, is_cancelled=stream.is_cancelled, on_token=stream.put)
            )
            budget_s = self._inactivity_s + PREFILL_ID_S * (len(prompt_ids) + len(accepted_ids))
            try:
                while (token := await self._next(stream, budget_s)) is not None:
                    budget_s = self._inactivity_s
                    yield token
            finally:
                await self._leave(stream)

    async def logits(self, ids: Sequence[int]) -> "NDArray[np.float32]":
        """See `EngineHost.logits`."""
        async with self._lane:
            stream = _Stream(self._running())
            answer: list[NDArray[np.float32]] = []
            stream.begin(lambda generator: answer.append(generator.logits(ids)))
            try:
                await self._next(stream, self._inactivity_s + PREFILL_ID_S * len(ids))
            finally:
                await self._leave(stream)
            return answer[0]

    def arm_fault(self, kind: FaultKind, times: int) -> None:
        """Always ConfigError."""
        raise ConfigError(
            f"engine '{self._name}' runs in this process, which a fault could end ({kind}, {times} times)",
            advice="use isolation=process for rehearsals",
        )

    @property
    def armed_fault(self) -> tuple[FaultKind, int] | None:
        """None: it takes none."""
        return None

    def clear_faults(self) -> None:
        """There are none."""

    async def kill(self) -> None:
        """Drop the session and wait until its thread has ended, or END_S: one that hangs is left. Idempotent."""
        if self._worker:
            self._worker.drop()
            await self._worker.ended(END_S)

    async def close(self) -> None:
        """The same: there is nothing more orderly. Idempotent."""
        await self.kill()

    def _running(self) -> "_Worker":
        if self._worker is None or not self.is_alive:
            raise EngineCrashed(f"engine '{self._name}' is not running", advice="start it", engine=self._name)
        return self._worker

    async def _next(self, stream: "_Stream", budget_s: Seconds) -> int | None:
        """The next token, None after the last one."""
        try:
            async with asyncio.timeout(budget_s):
                return await stream.next()
        except TimeoutError as error:
            self._lose(stream.worker, f"no progress within {budget_s:.2f} s; its thread is left behind")
            raise EngineHung(
                f"engine '{self._name}' made no progress within {budget_s:.2f} s and was dropped",
                advice="another engine can go on; use isolation=process to get its memory back",
                engine=self._name,
            ) from error
        except KenshoError:
            raise
        except MemoryError as error:
            raise EngineError("the engine is out of memory", advice="use a smaller model or context") from error
        except Exception as error:
            self._lose(stream.worker, f"{type(error).__name__}: {error}"[:300])
            raise EngineCrashed(
                f"engine '{self._name}' failed: {type(error).__name__}: {error}"[:500],
                advice="another engine can go on; it is started again",
                engine=self._name,
            ) from error

    async def _leave(self, stream: "_Stream") -> None:
        if not await stream.cancelled(self._inactivity_s):
            self._lose(stream.worker, f"a cancelled request did not stop within {self._inactivity_s:.2f} s")

    def _lose(self, worker: "_Worker", why: str) -> None:
        worker.drop()
        self._emit(EngineLost(engine=self._name, pid=os.getpid(), reason=why))


class _Worker:
    """The thread: loads the session, does one piece of work after the other, closes the session."""

    def __init__(self, name: str, graph: LoadedGraph, max_context: int, threads: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_ready = False
        self.is_dropped = False
        self.streams: set[_Stream] = set()
        self._name = name
        self._load = (graph, max_context, threads)
        self._work: SimpleQueue[Callable[[Generator], object] | None] = SimpleQueue()
        self._loading: asyncio.Future[None] = self.loop.create_future()
        self._has_ended = asyncio.Event()
        # A daemon: one that hangs must not keep the program from its end.
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    async def ready(self) -> None:
        """Until the model is loaded. Raises what loading raises."""
        await asyncio.shield(self._loading)
        self.is_ready = True

    def submit(self, work: "Callable[[Generator], object]") -> None:
        self._work.put(work)

    def drop(self) -> None:
        """No more: streams end now, the thread when it can. Idempotent."""
        if not self.is_dropped:
            self.is_dropped = True
            self._work.put(None)
            for stream in tuple(self.streams):
                stream.fail(EngineCrashed(f"engine '{self._name}' was dropped", advice="start it", engine=self._name))

    async def ended(self, timeout_s: Seconds) -> bool:
        """Waits for the end of the thread; False: it still works."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_ended.wait()
        except TimeoutError:
            return False
        self._thread.join(timeout_s)  # it has said its last word: microseconds
        return True

    def tell(self, act: Callable[..., object], *words: object) -> None:
        """Call `act` on the event loop, from this thread."""
        try:
            self.loop.call_soon_threadsafe(act, *words)
        except RuntimeError:
            self.is_dropped = True  # the loop is closed: nobody listens any more

    def _run(self) -> None:
        from kensho.runtime.engine.faults import Faults
        from kensho.runtime.engine.generation import Generator
        from kensho.runtime.engine.session import Session

        graph, max_context, threads = self._load
        try:
            session = Session.load(
                graph.graph_folder, graph.model_folder, tier=graph.tier, max_context=max_context, threads=threads
            )
        except Exception as error:
            self.tell(self._set_loaded, error)
        else:
            self.tell(self._set_loaded, None)
            generator = Generator(session, Faults())
            while (work := self._work.get()) is not None:
                work(generator)
            session.close()
        self.tell(self._has_ended.set)

    def _set_loaded(self, error: Exception | None) -> None:
        if not self._loading.done():
            if error is None:
                self._loading.set_result(None)
            else:
                self._loading.set_exception(error)
                self._loading.exception()  # a start that timed out asks no more


class _Stream:
    """One request: what the thread makes, on its way to the event loop."""

    def __init__(self, worker: _Worker) -> None:
        self.worker = worker
        self._inbox: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self._is_cancelled = False
        self._has_ended = asyncio.Event()

    def begin(self, work: "Callable[[Generator], object]") -> None:
        """Have the thread do it, and mark its end in the inbox."""

        def do(generator: "Generator") -> None:
            end: Exception | None = None
            try:
                work(generator)
            except Exception as error:
                end = error
            self.worker.tell(self._end, end)

        self.worker.streams.add(self)
        self.worker.submit(do)

    def put(self, token: int) -> None:
        """From the thread."""
        self.worker.tell(self._inbox.put_nowait, token)

    def is_cancelled(self) -> bool:
        """From the thread, before each step."""
        return self._is_cancelled or self.worker.is_dropped

    async def next(self) -> int | None:
        """The next token, None after the last. Raises what the engine raised."""
        item = await self._inbox.get()
        if isinstance(item, Exception):
            raise item
        return item

    def fail(self, error: Exception) -> None:
        """End it now, whatever the thread does; tokens that have come are still handed out."""
        self._inbox.put_nowait(error)
        self._has_ended.set()

    async def cancelled(self, timeout_s: Seconds) -> bool:
        """Stop the work, which takes a step. False: it did not stop in time."""
        self._is_cancelled = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._has_ended.wait()
        except TimeoutError:
            return False
        finally:
            self.worker.streams.discard(self)
        return True

    def _end(self, error: Exception | None) -> None:
        self._inbox.put_nowait(error)
        self._has_ended.set()
