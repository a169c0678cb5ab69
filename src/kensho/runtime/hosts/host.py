"""`EngineHost`: an engine in a child process (satisfies `base.inference.Engine`; prototype: MockGPU / MockCPU engines).

    host = EngineHost("primary", graph, clock=..., emit=..., env={}, threads=2, max_context=2048,
                      start_s=60.0, inactivity_s=30.0)
    await host.start()
    async for token in host.generate(prompt_ids, (), Sampling(stop_ids=(1,))): ...
    await host.close()

Rules: (1) whatever happens in the host is an EngineError here, within the inactivity budget; (2) a host that makes no
progress is killed, and neither its end nor its memory is waited for; (3) leaving `generate` in any way leaves the host
idle, or dead; (4) after `kill` and `close` no process, socket, segment or task is left. Starting it again is the
caller's decision (the circuit's). Where the processes come from is passed in (`host_source`).
"""

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import (
    ConfigError,
    EngineCrashed,
    EngineError,
    EngineHung,
    EngineUnkillable,
    KenshoError,
)
from kensho.base.events import Emit, EngineLost, EngineStarted, GraphLoaded
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.error_wire import restore_error
from kensho.runtime.hosts.frames import (
    Cancel,
    Done,
    Exchange,
    Exchanged,
    Failed,
    Fault,
    FaultKind,
    Generate,
    Load,
    Loaded,
    Message,
    Operation,
    Ping,
    Pong,
    TensorHeader,
    Token,
)
from kensho.runtime.hosts.host_process import HostGoneError, HostProcess
from kensho.runtime.hosts.host_source import HostSource, SpawnedHosts
from kensho.runtime.system.process import Ended

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREFILL_ID_S: Seconds = 0.01
"""What each id of a prefill adds to the inactivity budget: ten times what 270 M parameters take on one slow core."""


class EngineHost:
    """One loaded model behind one process. Used from one event loop."""

    def __init__(
        self,
        name: str,
        graph: LoadedGraph,
        *,
        clock: Clock,
        emit: Emit,
        env: Mapping[str, str],
        threads: int,
        max_context: int,
        start_s: Seconds,
        inactivity_s: Seconds,
        allow_faults: bool = False,
        hosts: HostSource | None = None,
    ) -> None:
        """`env` is the child's whole environment; `max_context` in tokens, or less where the graph allows less.

        `hosts` makes the processes; None = each is a new interpreter.
        """
        self._name = name
        self._graph = graph
        self._clock = clock
        self._emit = emit
        self._env = env
        self._threads = threads
        self._max_context = min(max_context, graph.max_positions)
        self._start_s = start_s
        self._inactivity_s = inactivity_s
        self._allow_faults = allow_faults
        self._hosts: HostSource = hosts or SpawnedHosts()
        self._host: HostProcess | None = None
        self._past: list[HostProcess] = []
        self._loaded: Loaded | None = None
        self._starting = asyncio.Lock()
        self._lane = asyncio.Lock()
        self._request = 0
        self._fault: FaultKind | None = None
        self._fault_times = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def graph(self) -> LoadedGraph:
        """What it serves."""
        return self._graph

    @property
    def pid(self) -> int | None:
        """The host's process id while it lives."""
        return self._host.pid if self._host and self._host.is_alive else None

    @property
    def is_alive(self) -> bool:
        return self._host is not None and self._loaded is not None and self._host.is_alive

    async def start(self) -> None:
        """Start the process and load the model. Idempotent. Raises EngineHung after `start_s`, EngineCrashed, or what
        the host says (EngineError, Damaged)."""
        async with self._starting:
            if self.is_alive:
                return
            began_s = self._clock.monotonic_s()
            self._loaded = None
            self._past = [past for past in (*self._past, self._host) if past and not past.has_ended]
            self._host = None
            try:
                async with asyncio.timeout(self._start_s):
                    self._host = await HostProcess.start(
                        self._hosts, env=self._env, allow_faults=self._allow_faults, on_lost=self._note_loss
                    )
                    await self._load(self._host, began_s)
            except TimeoutError as error:
                raise EngineHung(
                    f"engine '{self._name}' did not load {self._graph.model} within {self._start_s:g} s",
                    advice="raise start_timeout_s, or look at the load of this machine",
                    engine=self._name,
                ) from error
            except asyncio.CancelledError:
                if self._host:
                    self._host.close()  # nobody waits for it any more: that is no loss
                raise
            finally:
                if self._loaded is None and self._host:
                    self._host.kill("it did not load the model")
                    await self._host.ended()

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        """See `Engine.generate`. Also raises ConfigError for a prompt that the model cannot take.

        A full context ends the stream as max_tokens does. After a cancel it waits until the host has stopped (one
        step), or kills it when the budget of that step is over.
        """
        async with self._lane:
            host = self._running()
            number = self._next_request()
            budget_s = self._inactivity_s + PREFILL_ID_S * (len(prompt_ids) + len(accepted_ids))
            self._send_fault(host)
            host.send(Generate(number, tuple(prompt_ids), tuple(accepted_ids), sampling))
            is_over = False
            try:
                while True:
                    message = await self._receive(host, budget_s)
                    budget_s = self._inactivity_s
                    match message:
                        case Token(request, token) if request == number:
                            yield token
                        case Done(request) if request == number:
                            is_over = True
                            return
                        case Failed(request, error) if request == number:
                            is_over = True
                            raise restore_error(error)
                        case _:
                            # Still on its way from a request that was cancelled twice.
                            continue
            finally:
                if not is_over and host.is_alive:
                    await self._cancel(host, number, budget_s)

    async def logits(self, ids: Sequence[int]) -> "NDArray[np.float32]":
        """The logits after these ids, (vocab_size,), as computed from nothing: to compare engines within a tolerance.

        Raises what `generate` raises. The array is the caller's.
        """
        import numpy

        budget_s = self._inactivity_s + PREFILL_ID_S * len(ids)
        async with self.exchange("logits", {"ids": numpy.array(ids, numpy.int64)}, budget_s) as arrays:
            logits = arrays.get("logits")
            if logits is None or logits.dtype != numpy.float32 or logits.ndim != 1:
                raise EngineError(f"engine '{self._name}' did not answer with logits", advice="restart the engine")
            return numpy.array(logits, numpy.float32)

    @asynccontextmanager
    async def exchange(
        self, operation: Operation, arrays: "Mapping[str, NDArray[np.generic]]", budget_s: Seconds
    ) -> "AsyncIterator[dict[str, NDArray[np.generic]]]":
        """Give the host arrays and read its answer where it put it: one copy each way, through shared memory.

        The views are valid inside the `async with` only, which keeps the engine from its next request. Raises
        ConfigError for arrays that cannot cross (`tensor_segment`), and what `generate` raises.
        """
        async with self._lane:
            host = self._running()
            number = self._next_request()
            headers = host.tensors.put(arrays)
            self._send_fault(host)
            host.send(Exchange(number, operation, headers))
            yield host.tensors.view(await self._exchanged(host, number, budget_s))

    async def _exchanged(self, host: HostProcess, number: int, budget_s: Seconds) -> tuple[TensorHeader, ...]:
        is_over = False
        try:
            while True:
                match await self._receive(host, budget_s):
                    case Exchanged(request, tensors) if request == number:
                        is_over = True
                        return tensors
                    case Failed(request, error) if request == number:
                        is_over = True
                        raise restore_error(error)
        finally:
            if not is_over and host.is_alive:
                await self._cancel(host, number, budget_s)

    def arm_fault(self, kind: FaultKind, times: int) -> None:
        """Let the next `times` requests meet a real failure (row S6), restarts in between included."""
        if not self._allow_faults:
            raise ConfigError(f"engine '{self._name}' does not allow faults", advice="start with --allow-faults")
        self._fault, self._fault_times = kind, times

    @property
    def armed_fault(self) -> tuple[FaultKind, int] | None:
        """Which one so many coming requests will meet."""
        return (self._fault, self._fault_times) if self._fault and self._fault_times > 0 else None

    def clear_faults(self) -> None:
        self._fault, self._fault_times = None, 0

    async def kill(self) -> None:
        """SIGKILL and reap. A running stream raises EngineCrashed at once. Idempotent. Raises EngineUnkillable for a
        process that is still there: it is stuck in a driver, and left to the kernel."""
        if self._host:
            self._host.kill("killed on request")
        stuck = [ended.pid for ended in await self._all_ended() if ended.exit_code is None]
        if stuck:
            raise EngineUnkillable(
                f"process {stuck[0]} of engine '{self._name}' does not react to SIGKILL",
                advice="reboot the machine",
                engine=self._name,
                pid=stuck[0],
            )

    async def close(self) -> None:
        """Let the process end by itself, within half a second, else kill it. Idempotent."""
        if self._host:
            self._host.close()
        await self._all_ended()

    async def _all_ended(self) -> list[Ended]:
        """Those before the last one too: one that hung was killed, and nobody waited until it was gone."""
        hosts = [*self._past, *([self._host] if self._host else [])]
        self._past.clear()
        return [await host.ended() for host in hosts]

    async def _load(self, host: HostProcess, began_s: Seconds) -> None:
        graph = self._graph
        host.send(Ping())
        self._send_fault(host, is_start=True)
        host.send(Load(str(graph.graph_folder), str(graph.model_folder), graph.tier, self._max_context, self._threads))
        while True:
            match await self._receive(host, self._start_s):
                case Pong():
                    seconds = self._clock.monotonic_s() - began_s
                    self._emit(EngineStarted(engine=self._name, pid=host.pid, seconds=seconds))
                case Loaded() as loaded:
                    self._loaded = loaded
                    self._emit(self._describe(loaded))
                    return
                case Failed(error=error):
                    raise restore_error(error)
                case other:
                    raise EngineError(f"unexpected {type(other).__name__} while loading", advice="restart the engine")

    def _describe(self, loaded: Loaded) -> GraphLoaded:
        graph = self._graph
        return GraphLoaded(
            engine=self._name,
            model=graph.model,
            version=graph.version,
            source=graph.source,
            tier=graph.tier,
            seconds=loaded.seconds,
        )

    def _running(self) -> HostProcess:
        if self._host is None or not self.is_alive:
            raise EngineCrashed(f"engine '{self._name}' is not running", advice="start it", engine=self._name)
        return self._host

    def _next_request(self) -> int:
        self._request += 1
        return self._request

    def _send_fault(self, host: HostProcess, *, is_start: bool = False) -> None:
        if self._fault and self._fault_times > 0 and (self._fault == "slow_start") == is_start:
            host.send(Fault(self._fault))
            self._fault_times -= 1

    async def _receive(self, host: HostProcess, budget_s: Seconds) -> Message:
        """The next message. What fails is told at once: a killed host may take 30 ms to give its memory back."""
        try:
            return await host.receive(budget_s)
        except TimeoutError as error:
            host.kill(f"no progress within {budget_s:.2f} s")
            raise EngineHung(
                f"engine '{self._name}' made no progress within {budget_s:.2f} s and was killed",
                advice="another engine can go on; raise inactivity_s if this machine is only slow",
                engine=self._name,
                pid=host.pid,
            ) from error
        except HostGoneError as error:
            if host.is_killed:
                raise self._crashed(host, "SIGKILL, by us", -signal.SIGKILL) from error
            ended = await host.fate()
            reason = f"{ended.explained}, in the middle of a message" if host.is_cut else ended.explained
            raise self._crashed(host, reason, ended.exit_code, ended.stderr) from error
        except KenshoError as error:
            host.kill(error.message)
            raise

    async def _cancel(self, host: HostProcess, request: int, budget_s: Seconds) -> None:
        """Returns when the host is idle, or dead: it has `budget_s` to stop, whatever else it says meanwhile."""
        host.send(Cancel(request))
        try:
            async with asyncio.timeout(budget_s):
                while True:
                    match await host.receive(budget_s):
                        case Done(number) | Failed(number) | Exchanged(number) if number == request:
                            return
        except TimeoutError:
            host.kill(f"a cancelled request did not stop within {budget_s:.2f} s")
        except HostGoneError:
            return
        except EngineError as error:
            host.kill(error.message)

    def _crashed(self, host: HostProcess, reason: str, by: int | None, stderr: str = "") -> EngineCrashed:
        return EngineCrashed(
            f"the host of engine '{self._name}' (process {host.pid}) is gone: {reason}",
            advice="another engine can go on; it is started again",
            engine=self._name,
            pid=host.pid,
            exit_code=by if by is not None and by >= 0 else None,
            signal=signal.Signals(-by).name if by is not None and by < 0 else None,
            stderr=stderr,
        )

    def _note_loss(self, ended: Ended, why: str) -> None:
        self._emit(EngineLost(engine=self._name, pid=ended.pid, reason=why or ended.explained))
