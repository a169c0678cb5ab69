"""One model's requests and its two engines: admission in front, circuits and failover behind (prototype: TaskExecutor).

    async with Scheduler(primary, standby, model="dialogue", canary=canary, ...) as scheduler:
        answer = scheduler.submit(prompt_ids, Sampling(max_tokens=64), priority=Priority.HIGH)
        async with aclosing(answer):
            async for token_id in answer:
                ...
        answer.record                      # engine, tokens, failovers, gap_ms, first_token_ms, tokens_per_second

A request waits in the queue until an engine is free, one stream an engine. The primary is preferred; the standby takes
what the primary cannot. A dead primary is restarted and probed in the background and takes requests again by itself.
Decisions are made in `admission`, `breaker` and `failover`; this shell carries them out on one event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Literal

from kensho.base.backoff import Rng
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import ConfigError, DeadlineMissed, EngineError, KenshoError
from kensho.base.events import Emit, RequestFinished
from kensho.base.inference import Engine, Sampling
from kensho.base.structs import Struct, field
from kensho.resilience.admission import AdmissionSettings, Level, Priority
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.circuit_status import CircuitStatus
from kensho.resilience.classify import FailureClass, classify
from kensho.resilience.failover import FailoverSettings, StreamProgress, StreamRecord, generate_with_failover
from kensho.resilience.guard import Canary, Guard
from kensho.resilience.intake import Intake

_LOOK_EVERY_S = 1.0

Standby = Literal["hot", "on_demand"]
"""hot: loaded beside the primary, and takes what the primary has no slot for. on_demand: loaded at the first failover,
which then costs a load; half the memory until then."""


class SchedulerSettings(Struct):
    standby: Standby = "hot"
    breaker: BreakerSettings = field(factory=BreakerSettings)
    admission: AdmissionSettings = field(factory=AdmissionSettings)
    failover: FailoverSettings = field(factory=FailoverSettings)


class SchedulerSnapshot(Struct):
    """For status and metrics."""

    circuits: dict[str, CircuitStatus]
    level: Level
    waiting: dict[Priority, int]
    running: int
    slots: int


class _Request(Struct):
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    priority: Priority
    deadline_s: Seconds
    guards: tuple[Guard, ...]
    progress: StreamProgress


class Answer:
    """The token ids of one request, in order. Iterate once, and close it (`aclosing`) unless iterated to the end.

    The request joins the queue at the first `anext`, so that an answer nobody reads costs nothing.
    """

    def __init__(self, ids: AsyncGenerator[int, None], progress: StreamProgress) -> None:
        self._ids = ids
        self._progress = progress

    @property
    def record(self) -> StreamRecord:
        """What was measured so far."""
        return self._progress.record

    def __aiter__(self) -> AsyncGenerator[int, None]:
        return self._ids

    async def aclose(self) -> None:
        """Cancel: the engine's work ends within one step, the slot is free at once. Idempotent."""
        await self._ids.aclose()


class Scheduler:
    """Owns both engines: it starts, restarts and closes them. Use it on one event loop, as a context manager."""

    def __init__(
        self,
        primary: Engine,
        standby: Engine | None,
        *,
        model: str,
        version: str,
        tier_of: Callable[[str], str],
        canary: Canary,
        settings: SchedulerSettings,
        clock: Clock,
        rng: Rng,
        emit: Emit,
    ) -> None:
        """`tier_of` gives an engine's tier by its name, for the events. `clock` must be the event loop's time."""
        self._model = model
        self._version = version
        self._tier_of = tier_of
        self._canary = canary
        self._settings = settings
        self._clock = clock
        self._emit = emit
        engines = [engine for engine in (primary, standby) if engine is not None]
        self._guards = tuple(
            Guard(
                engine,
                canary,
                model=model,
                settings=settings.breaker,
                clock=clock,
                rng=rng,
                emit=emit,
                on_change=self._pump,
            )
            for engine in engines
        )
        self._intake = Intake(settings.admission, model=model, slots=self._slots, clock=clock, emit=emit)
        self._preparing: asyncio.Task[None] | None = None
        self._learning: asyncio.Task[None] | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def __aenter__(self) -> "Scheduler":
        """Returns when the first engine that can is up; a hot standby comes up behind it. Raises EngineError."""
        try:
            await self._start_first()
        except BaseException:
            await self.close()
            raise
        if self._settings.standby == "hot":
            self._preparing = asyncio.create_task(self._prepare())
        self._look_timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def submit(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        *,
        priority: Priority = Priority.NORMAL,
        deadline_s: Seconds | None = None,
        engine: str | None = None,
    ) -> Answer:
        """The answer to one prompt.

        `deadline_s` is the monotonic moment by which the first token must be there (None: by class). `engine` names
        the only engine that may answer; it then has no failover. Raises ConfigError for an unknown engine; iterating
        raises Overloaded (with `retry_after_s`), DeadlineMissed, or EngineError when no engine is left.
        """
        guards = tuple(guard for guard in self._guards if engine in {None, guard.name})
        if not guards:
            names = ", ".join(guard.name for guard in self._guards)
            raise ConfigError(f"there is no engine {engine!r}", advice=f"the engines are: {names}")
        now_s = self._clock.monotonic_s()
        if deadline_s is None:
            deadline_s = now_s + self._settings.admission.deadlines_s[priority]
        progress = StreamProgress(now_s)
        request = _Request(tuple(prompt_ids), sampling, priority, deadline_s, guards, progress)
        return Answer(self._serve(request), progress)

    def force(self, engine: str, mode: Mode | None) -> None:
        """A person's word about one engine: FORCED_OPEN, FORCED_CLOSED, or None. Raises ConfigError."""
        for guard in self._guards:
            if guard.name == engine:
                guard.force(mode)
                return
        raise ConfigError(f"there is no engine {engine!r}", advice="name one of the model's engines")

    def snapshot(self) -> SchedulerSnapshot:
        return SchedulerSnapshot(
            circuits={guard.name: guard.snapshot() for guard in self._guards},
            level=self._intake.level,
            waiting=self._intake.waiting(),
            running=self._intake.running,
            slots=self._slots(),
        )

    async def close(self) -> None:
        """Refuse what waits, end what runs, close both engines. No task, timer or process is left. Idempotent."""
        self._is_closed = True
        self._intake.close(_closed(self._model))
        if self._look_timer:
            self._look_timer.cancel()
        tasks = [task for task in (self._preparing, self._learning) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*(guard.close() for guard in self._guards))
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- engines ---

    async def _start_first(self) -> None:
        why: EngineError | None = None
        for guard in self._guards:
            async with guard.lane:
                permit = guard.admit()
                if permit is None:
                    continue
                try:
                    await guard.start()
                except EngineError as error:
                    why = error
                    guard.failed(permit, FailureClass.CRASH)
                else:
                    guard.cancelled(permit)
                    return
        if why and isinstance(why.__cause__, KenshoError) and not isinstance(why.__cause__, EngineError):
            raise why.__cause__  # a damaged graph, say, is mended by other means than an engine
        raise EngineError(f"no engine of model {self._model!r} starts", advice=why.advice if why else "") from why

    async def _prepare(self) -> None:
        """Bring up the hot standby. A failure is its circuit's to mend."""
        for guard in self._guards:
            permit = None if guard.was_started else guard.admit()
            if permit is None:
                continue
            async with guard.lane:
                try:
                    await guard.start()
                except EngineError:
                    guard.failed(permit, FailureClass.CRASH)
                except BaseException:
                    guard.cancelled(permit)
                    raise
                else:
                    guard.cancelled(permit)  # a load is no verdict
        self._pump()

    async def _learn_canary(self, guard: Guard, permit: int) -> None:
        try:
            async with guard.lane:
                await self._canary.learn(guard.engine)
        except EngineError as error:
            guard.failed(permit, classify(error) or FailureClass.UNKNOWN)
        except BaseException:
            guard.cancelled(permit)
            raise
        else:
            guard.succeeded(permit)

    def _slots(self) -> int:
        """One stream for each engine that is loaded and admitted. At least one, so that with no engine a request is
        started, and told so."""
        return max(1, sum(guard.admits and guard.engine.is_alive for guard in self._guards))

    # --- requests ---

    async def _serve(self, request: _Request) -> AsyncGenerator[int, None]:
        self._pump()
        try:
            await self._intake.wait_for_turn(request.priority, request.deadline_s)
        except asyncio.CancelledError:
            self._tell_finished(request, "cancelled")
            raise
        began_s = self._clock.monotonic_s()
        outcome = "failed"
        try:
            async with aclosing(self._stream(request)) as ids:
                token = await self._first_token(request, ids)
                if request.progress.record.failovers == 0:
                    self._intake.first_token_came(self._clock.monotonic_s() - began_s)
                while token is not None:
                    yield token
                    token = await anext(ids, None)
            outcome = "ok"
        except (asyncio.CancelledError, GeneratorExit):
            outcome = "cancelled"
            raise
        except DeadlineMissed:
            outcome = "deadline"
            raise
        except EngineError as error:
            if self._is_closed:
                raise _closed(self._model) from error
            raise
        finally:
            self._tell_finished(request, outcome)
            self._intake.end_turn(self._clock.monotonic_s() - began_s)

    def _stream(self, request: _Request) -> AsyncGenerator[int, None]:
        return generate_with_failover(
            request.guards,
            request.prompt_ids,
            request.sampling,
            progress=request.progress,
            settings=self._settings.failover,
            clock=self._clock,
            emit=self._emit,
        )

    async def _first_token(self, request: _Request, ids: AsyncGenerator[int, None]) -> int | None:
        left_s = request.deadline_s - self._clock.monotonic_s()
        try:
            async with asyncio.timeout(left_s):
                return await anext(ids, None)
        except TimeoutError:
            raise DeadlineMissed(
                f"{request.priority.name.lower()} request had no token by its deadline",
                advice="allow more time, or come back later",
                retry_after_s=self._intake.estimate().service_s,
            ) from None

    def _pump(self) -> None:
        """Called after everything that may free an engine."""
        if self._is_closed:
            return
        for guard in self._guards:
            guard.notice_death()
        self._intake.pump()

    def _look(self) -> None:
        """Now and then: an engine that died while nobody asks is mended before somebody does, and an unknown canary
        is learned in a quiet moment, from the standby if it is up, since users have no wish of it."""
        self._pump()
        if (
            not self._canary.is_known
            and self._intake.running == 0
            and (self._learning is None or self._learning.done())
        ):
            up = [guard for guard in self._guards if guard.engine.is_alive and not guard.lane.locked()]
            permit = up[-1].admit() if up else None
            if permit is not None:
                self._learning = asyncio.create_task(self._learn_canary(up[-1], permit))
        self._look_timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _tell_finished(self, request: _Request, outcome: str) -> None:
        record = request.progress.record
        self._emit(
            RequestFinished(
                model=self._model,
                version=self._version,
                engine=record.engine,
                tier=self._tier_of(record.engine) if record.engine else "",
                priority=request.priority.name.lower(),
                outcome=outcome,
                tokens=record.tokens,
                failovers=record.failovers,
                gap_ms=record.gap_ms,
                first_token_ms=record.first_token_ms,
                tokens_per_second=record.tokens_per_second,
            )
        )


def _closed(model: str) -> EngineError:
    return EngineError(f"model {model!r} is being closed", advice="open it again")
