"""One model's requests and its two engines: admission in front, circuits and failover behind (prototype: TaskExecutor).

    async with Scheduler(primary, standby, model="dialogue", canary=canary, ...) as scheduler:
        answer = scheduler.submit(prompt_ids, Sampling(max_tokens=64), priority=Priority.HIGH)
        async with aclosing(answer):
            async for token_id in answer:
                ...
        answer.record                      # engine, tokens, failovers, gap_ms, first_token_ms, tokens_per_second

A request waits in the queue until an engine is free, one stream an engine. The primary is preferred; the standby takes
what the primary cannot, if it can be in time there. A dead primary is restarted and probed in the background and takes
requests again by itself. Each request has a life of its own (`life`), which survives engines, gives way to more urgent
ones, and stops the engine of a reader who does not read. Decisions are made in `admission`, `breaker` and `failover`;
this shell carries them out on one event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Literal

from kensho.base.backoff import Rng
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import ConfigError, EngineError
from kensho.base.events import Emit, RequestFinished
from kensho.base.inference import Engine, Sampling
from kensho.base.structs import Struct, field
from kensho.resilience.admission import Candidate, Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.budget import Budget
from kensho.resilience.canary import OffersLogits
from kensho.resilience.checkups import Checkups, CheckupSettings
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.circuit_status import CircuitStatus
from kensho.resilience.estimate import EngineTimes
from kensho.resilience.failover import FailoverSettings, StreamProgress, StreamRecord
from kensho.resilience.guard import Canary, Guard, hurry
from kensho.resilience.intake import Intake
from kensho.resilience.outlet import Outlet
from kensho.resilience.pressure import Level
from kensho.resilience.request import Floor, Lasting, Outcome, Request
from kensho.resilience.starter import Starter
from kensho.resilience.stream_life import Answer, StreamLife
from kensho.resilience.surroundings import UNKNOWN, Surroundings
from kensho.resilience.whole_call import WholeCall

_LOOK_EVERY_S = 1.0
_ONE_TOKEN = Sampling(max_tokens=1)

Standby = Literal["hot", "on_demand"]
"""hot: loaded beside the primary, and takes what the primary has no slot for. on_demand: loaded at the first failover,
which then costs a load; half the memory until then."""


class SchedulerSettings(Struct):
    standby: Standby = "hot"
    breaker: BreakerSettings = field(factory=BreakerSettings)
    admission: AdmissionSettings = field(factory=AdmissionSettings)
    failover: FailoverSettings = field(factory=FailoverSettings)
    checkups: CheckupSettings = field(factory=CheckupSettings)
    unread_tokens: int = 256
    """So many may wait for their reader; then its stream is stopped at a token, until they were read."""


class SchedulerSnapshot(Struct):
    """For status and metrics."""

    circuits: dict[str, CircuitStatus]
    level: Level
    waiting: dict[Priority, int]
    running: int
    slots: int
    unread: int = 0
    """Streams that were stopped because nobody reads them."""


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
        surroundings: Surroundings = UNKNOWN,
        lasting: Lasting | None = None,
    ) -> None:
        """`tier_of` gives an engine's tier by its name, for the events. `clock` must be the event loop's time.
        `surroundings`: what circuits are told of the machine, and their memory. `lasting`: of the schedulers of this
        version of the model before this one."""
        self._model = model
        self._version = version
        self._tier_of = tier_of
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._guards = {
            engine.name: Guard(
                engine,
                canary,
                model=model,
                settings=settings.breaker,
                clock=clock,
                rng=rng,
                emit=emit,
                on_change=self._changed,
                surroundings=surroundings,
            )
            for engine in (primary, standby)
            if engine is not None
        }
        self._times = {name: EngineTimes() for name in self._guards}
        self._intake = Intake(
            settings.admission,
            model=model,
            candidates=self._candidates,
            is_free=lambda name: not self._guards[name].lane.locked(),
            is_hopeless=self._is_hopeless,
            clock=clock,
            emit=emit,
        )
        self._starter = Starter(self._guards, model=model)
        self._floor = Floor(
            model=model,
            guards=self._guards,
            intake=self._intake,
            settings=settings.failover,
            retries=Budget(share=settings.failover.retry_share, burst=5),
            hedges=Budget(share=settings.failover.hedge_share, burst=1),
            clock=clock,
            emit=emit,
            finished=self._tell_finished,
            closing=lambda: _closed(model) if self._is_closed else None,
            bring_up=self._starter.bring_up,
            pump=self._pump,
            times=self._times,
            lasting=lasting or Lasting(),
        )
        self._checkups = Checkups(
            self._guards,
            canary,
            model=model,
            within_s=settings.breaker.canary_timeout_s,
            settings=settings.checkups,
            failover=settings.failover,
            clock=clock,
            emit=emit,
            pump=self._pump,
        )
        self._requests: set[asyncio.Task[None]] = set()
        self._preparing: asyncio.Task[None] | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    async def __aenter__(self) -> "Scheduler":
        """Returns when the first engine that can is up; a hot standby comes up behind it. Raises EngineError."""
        for guard in self._guards.values():
            guard.begin()
        try:
            await self._starter.start_first()
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
        is_whole: bool = False,
        engine: str | None = None,
    ) -> Answer:
        """The answer to one prompt.

        `deadline_s` is the monotonic moment by which the first token must be there, or (`is_whole`) the last one; None:
        by class. `engine` names the only engine that may answer; it then has no failover. Raises ConfigError for an
        unknown engine; iterating raises Overloaded (with `retry_after_s`), DeadlineMissed, or EngineError when no
        engine is left.
        """
        self._check_engine(engine)
        now_s, number = self._clock.monotonic_s(), next(self._floor.lasting.numbers)
        if deadline_s is None:
            deadline_s = now_s + self._settings.admission.deadlines_s[priority]
        progress = StreamProgress(now_s)
        request = Request(number, tuple(prompt_ids), sampling, priority, deadline_s, is_whole, engine)
        return Answer(number, self._serve(request, progress), progress)

    async def logits(
        self,
        prompt_ids: Sequence[int],
        *,
        priority: Priority = Priority.NORMAL,
        deadline_s: Seconds | None = None,
        engine: str | None = None,
    ) -> Sequence[float]:
        """What the model thinks of every id after the prompt, from the engine whose turn it is; asked once more of
        another one if that fails. `deadline_s` is of the answer. Raises as `submit`, and ConfigError for engines that
        cannot say."""
        self._check_engine(engine)
        now_s, number = self._clock.monotonic_s(), next(self._floor.lasting.numbers)
        if deadline_s is None:
            deadline_s = now_s + self._settings.admission.deadlines_s[priority]
        request = Request(number, tuple(prompt_ids), _ONE_TOKEN, priority, deadline_s, engine=engine)

        async def ask(asked: Engine) -> Sequence[float]:
            if not isinstance(asked, OffersLogits):
                raise ConfigError(f"engine {asked.name!r} cannot give logits", advice="ask it for tokens")
            return await asked.logits(prompt_ids)

        self._checkups.make_way()
        self._pump()
        return await WholeCall(request, self._floor, ask).answer()

    def force(self, engine: str, mode: Mode | None, for_s: Seconds | None = None) -> None:
        """A person's word about one engine: FORCED_OPEN, FORCED_CLOSED, METRICS_ONLY, or None. Raises ConfigError."""
        if engine not in self._guards:
            raise ConfigError(f"there is no engine {engine!r}", advice="name one of the model's engines")
        if mode is None:
            self._floor.lasting.poison.forget()
        self._guards[engine].force(mode, for_s)

    def circuits(self) -> dict[str, CircuitStatus]:
        """By engine, the primary first. May be called from any thread."""
        return {name: guard.snapshot() for name, guard in self._guards.items()}

    def snapshot(self) -> SchedulerSnapshot:
        return SchedulerSnapshot(
            circuits=self.circuits(),
            level=self._intake.level,
            waiting=self._intake.waiting(),
            running=self._intake.running,
            slots=max(1, len(self._candidates())),
            unread=self._floor.unread,
        )

    async def close(self) -> None:
        """Refuse what waits, end what runs, close both engines. No task, timer or process is left. Idempotent."""
        self._is_closed = True
        self._intake.close(_closed(self._model))
        if self._look_timer:
            self._look_timer.cancel()
        if self._preparing:
            self._preparing.cancel()
            await asyncio.wait({self._preparing})
        await asyncio.gather(*(guard.close() for guard in self._guards.values()))
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    # --- engines ---

    async def _prepare(self) -> None:
        """Bring up the hot standby."""
        await self._starter.bring_up_all()
        self._pump()

    def _candidates(self) -> tuple[Candidate, ...]:
        """Who takes requests now, best first: the loaded ones; if there is none, one that would have to be loaded."""
        now_s, of = self._clock.monotonic_s(), self._times
        admitting = [(name, guard) for name, guard in self._guards.items() if guard.admits]
        loaded = [(name, guard) for name, guard in admitting if guard.engine.is_alive]
        if len(loaded) > 1:  # one that has just come back gets a growing share
            loaded.sort(key=lambda one: one[1].prefers_others())
        return tuple(Candidate(name, of[name].times(now_s), of[name].medians(now_s)) for name, _ in loaded or admitting)

    def _is_hopeless(self) -> bool:
        """No engine takes requests, and none will within seconds."""
        hurry(tuple(self._guards.values()))
        return not any(guard.admits or guard.is_coming for guard in self._guards.values())

    # --- requests ---

    def _check_engine(self, engine: str | None) -> None:
        if engine is not None and engine not in self._guards:
            raise ConfigError(f"there is no engine {engine!r}", advice=f"the engines are: {', '.join(self._guards)}")

    async def _serve(self, request: Request, progress: StreamProgress) -> AsyncGenerator[int, None]:
        self._checkups.make_way()
        self._pump()
        life = StreamLife(request, progress, Outlet(self._settings.unread_tokens), self._floor)
        task = asyncio.create_task(life.run())
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)
        try:
            while (token := await life.outlet.get()) is not None:
                yield token
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
            life.settle("cancelled")  # if its task was cancelled before it began

    def _changed(self) -> None:
        self._starter.note_change()
        self._pump()

    def _pump(self) -> None:
        """Called after everything that may free an engine."""
        if self._is_closed:
            return
        for guard in self._guards.values():
            guard.notice_trouble()
        self._intake.pump()

    def _look(self) -> None:
        """Now and then: an engine that died while nobody asks is mended before somebody does, and one that seems
        healthy is checked."""
        self._pump()
        self._checkups.look(is_busy=self._intake.running > 0 or any(self._intake.waiting().values()))
        self._look_timer = asyncio.get_running_loop().call_later(_LOOK_EVERY_S, self._look)

    def _tell_finished(self, request: Request, outcome: Outcome, record: StreamRecord) -> None:
        self._emit(
            RequestFinished(
                model=self._model,
                version=self._version,
                request=request.number,
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
