"""The life of one request, from the queue to its last token, as one task that outlives no reader.

It waits for its turn, uses the turn's engine, and waits again when that engine is lost (failover), when it is cut at a
token for a more urgent request, or when its reader does not read. Its outcome is told exactly once: `finished` gets it,
or the intake has told that it was rejected. What the reader sees comes through `outlet`, in order, each token once.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from itertools import count

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import DeadlineMissed, EngineError, KenshoError, Overloaded
from kensho.base.events import Emit, Event, RequestPoisoned
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, field
from kensho.resilience.admission import Priority
from kensho.resilience.budget import Budget
from kensho.resilience.estimate import EngineTimes, RecentTimes, Work
from kensho.resilience.failover import (
    EngineLost,
    FailoverSettings,
    Finish,
    GiveUp,
    Part,
    StreamProgress,
    StreamRecord,
    after_failure,
    hedged,
    nobody_left,
    use_engine,
)
from kensho.resilience.guard import Guard
from kensho.resilience.intake import Intake, Turn
from kensho.resilience.outlet import Outlet
from kensho.resilience.poison import DEADLY, PoisonList


class Request(Struct):
    """What was asked for."""

    number: int
    """Unique in its scheduler: that of its events."""
    prompt_ids: tuple[int, ...]
    sampling: Sampling
    priority: Priority
    deadline_s: Seconds
    is_whole: bool = False
    """The deadline is of the whole answer, not of its first token."""
    engine: str | None = None
    """The only engine that may answer; None: any."""


class Floor(Struct, frozen=False, eq=False):
    """What all requests to one model share."""

    model: str
    guards: Mapping[str, Guard]
    intake: Intake
    settings: FailoverSettings
    retries: Budget
    hedges: Budget
    clock: Clock
    emit: Emit
    finished: Callable[[Request, str, StreamRecord], None]
    """Gets the outcome in a word: ok, failed, cancelled, deadline."""
    closing: Callable[[], EngineError | None]
    """What to say instead of an engine's failure once the model is being closed."""
    times: Mapping[str, EngineTimes]
    poison: PoisonList = field(factory=PoisonList)
    lengths: RecentTimes = field(factory=RecentTimes)
    """Of recent answers, in tokens."""
    unread: int = 0
    """Streams that were stopped because nobody reads them."""
    numbers: Iterator[int] = field(factory=lambda: count(1))
    """Of the requests."""


class Answer:
    """The token ids of one request, in order. Iterate once, and close it (`aclosing`) unless iterated to the end.

    The request joins the queue at the first `anext`, so that an answer nobody reads costs nothing.
    """

    def __init__(self, number: int, ids: AsyncGenerator[int, None], progress: StreamProgress) -> None:
        self.number = number
        """Of its request, as events have it."""
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


class Life:
    """`run` it as a task; read `outlet`."""

    def __init__(self, request: Request, progress: StreamProgress, outlet: Outlet, floor: Floor) -> None:
        self.outlet = outlet
        self.progress = progress
        self._request = request
        self._floor = floor
        self._accepted: list[int] = []
        self._why: EngineError | None = None
        self._avoids = ""
        self._is_settled = False

    async def run(self) -> None:
        floor, outcome = self._floor, "failed"
        error: KenshoError | None = None
        floor.retries.earn()
        try:
            floor.poison.check(self._request.prompt_ids, self._request.sampling, floor.clock.monotonic_s())
            await self._answer()
            outcome = "ok"
            floor.poison.clear(self._request.prompt_ids, self._request.sampling)
            floor.lengths.add(len(self._accepted), floor.clock.monotonic_s())
        except asyncio.CancelledError:
            outcome, error = "cancelled", floor.closing()
            raise
        except _Late as late:
            outcome, error = "deadline", late.error
        except Overloaded as refusal:
            outcome, error = "", refusal
        except KenshoError as bad:
            error = floor.closing() or bad
        finally:
            self.settle(outcome)
            self.outlet.end(error)

    def settle(self, outcome: str) -> None:
        """Tell the outcome, unless that was done; empty: the intake has told it."""
        if outcome and not self._is_settled:
            self._floor.finished(self._request, outcome, self.progress.record)
        self._is_settled = True

    async def _answer(self) -> None:
        request, intake = self._request, self._floor.intake
        turn = await intake.wait_for_turn(
            request.priority, request.deadline_s, self._work(), request.engine, request=request.number
        )
        try:
            while not await self._hold(turn):
                is_slow = self.outlet.is_full
                if is_slow:
                    self._floor.unread += 1
                    try:
                        await self.outlet.drained()
                    finally:
                        self._floor.unread -= 1
                has_begun = bool(self._accepted) and not request.is_whole
                deadline_s = float("inf") if has_begun else request.deadline_s
                turn = await intake.wait_again(
                    turn, deadline_s, self._work(), avoids=self._avoids, is_urgent=not is_slow
                )
        finally:
            intake.done(turn)

    async def _hold(self, turn: Turn) -> bool:
        """Use the turn's engine until the answer is complete. False: it was lost, or taken away, on the way."""
        if turn.engine is None:
            self._floor.intake.give_back(turn)
            guards = self._floor.guards.values()
            asked = [guard for guard in guards if self._request.engine in {None, guard.name}]
            raise nobody_left(asked, "no engine can take it now") from self._why
        has_deadline = self._request.is_whole or not self._accepted
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(self._request.deadline_s if has_deadline else None) as limit:
                turn.cut = lambda: None if limit.expired() else limit.reschedule(loop.time())
                async with aclosing(self._parts(turn)) as parts:
                    async for engine, token in parts:
                        if has_deadline and not self._request.is_whole and not turn.is_cut:
                            has_deadline, turn.due_s = False, float("inf")
                            limit.reschedule(None)
                        self._accept(engine, token)
                        if self.outlet.is_full and self._missing:
                            self.progress.pauses += 1
                            return False
            self._note_move(self.progress.resumed(turn.engine, self._floor.clock.monotonic_s()))
        except TimeoutError:
            if not limit.expired():
                raise
            if not turn.is_cut:
                raise _Late(self._late()) from None
            self.progress.pauses += 1
            return False
        except EngineLost as lost:
            return self._note_loss(lost)
        finally:
            self._floor.intake.give_back(turn)
        return True

    @property
    def _missing(self) -> int:
        return self._request.sampling.max_tokens - len(self._accepted)

    def _accept(self, engine: str, token: int) -> None:
        self._note_move(self.progress.token_made(engine, self._floor.clock.monotonic_s()))
        self._accepted.append(token)
        self.outlet.put(token)

    async def _parts(self, turn: Turn) -> AsyncGenerator[Part, None]:
        """The tokens of the turn's engine, or of another that was asked too because this one is late."""
        floor = self._floor
        claimed: list[Turn] = []

        def second() -> AsyncGenerator[Part, None] | None:
            other = floor.intake.claim(turn) if floor.hedges.spend() else None
            if other is None:
                return None
            claimed.append(other)
            self.progress.is_hedged = True
            return self._part(other)

        parts = self._part(turn)
        late_s = self._hedge_after_s(turn)
        if late_s > 0:
            floor.hedges.earn()
            parts = hedged(parts, second, late_s)
        try:
            async with aclosing(parts):
                async for part in parts:
                    yield part
        finally:
            for other in claimed:
                floor.intake.give_back(other)  # a part that was stopped before it began has not done so

    async def _part(self, turn: Turn) -> AsyncGenerator[Part, None]:
        """One engine's part of the stream; gives the turn back as soon as it ends."""
        floor, engine = self._floor, str(turn.engine)
        stream = use_engine(
            floor.guards[engine],
            self._request.prompt_ids,
            self._accepted,
            self._request.sampling,
            times=floor.times[engine],
            settings=floor.settings,
            clock=floor.clock,
        )
        try:
            async with aclosing(stream):
                async for part in stream:
                    yield part
        finally:
            floor.intake.give_back(turn)

    def _hedge_after_s(self, turn: Turn) -> Seconds:
        """How long its first token may take before a second engine is asked; 0: none is."""
        if self._request.priority is not Priority.CRITICAL or self._accepted:
            return 0.0
        times = self._floor.times[str(turn.engine)].times(self._floor.clock.monotonic_s())
        return self._floor.settings.hedge_after * times.needed_s(Work(len(self._request.prompt_ids)))

    def _note_move(self, moved: Event | None) -> None:
        if moved is not None:
            self._floor.emit(moved)

    def _note_loss(self, lost: EngineLost) -> bool:
        """What follows from the loss of an engine. True: nothing is missing. Raises EngineError to give up, and
        PoisonRequest when this request has killed its second host."""
        floor = self._floor
        self.progress.lost(lost.engine, lost.why, lost.silent_since_s)
        self._why, self._avoids = lost.why, lost.engine
        if lost.was_working and self._missing > 0:
            now_s = floor.clock.monotonic_s()
            deaths = floor.poison.blame(self._request.prompt_ids, self._request.sampling, lost.why, now_s)
            if deaths == DEADLY:
                prompt_tokens = len(self._request.prompt_ids)
                floor.emit(RequestPoisoned(model=floor.model, prompt_tokens=prompt_tokens, hosts=deaths))
            floor.poison.check(self._request.prompt_ids, self._request.sampling, now_s)
        has_left = not floor.guards[lost.engine].admits
        move = after_failure(
            missing=self._missing,
            moves=self.progress.failovers,
            max_moves=floor.settings.max_moves,
            may_repeat=self._missing <= 0 or has_left or floor.retries.spend(),
        )
        if isinstance(move, GiveUp):
            raise nobody_left(tuple(floor.guards.values()), move.reason) from lost.why
        return isinstance(move, Finish)

    def _work(self) -> Work:
        """What its deadline is about. Of a whole answer as many steps as it may have, or as answers have had lately."""
        known = len(self._request.prompt_ids) + len(self._accepted)
        if not self._request.is_whole:
            return Work(known)
        most, lengths, now_s = self._request.sampling.max_tokens, self._floor.lengths, self._floor.clock.monotonic_s()
        is_critical = self._request.priority is Priority.CRITICAL  # begun by the median (`admission.Candidate`)
        usual = int(lengths.median(now_s) if is_critical else lengths.p95(now_s)) or most
        return Work(known, max(0, min(usual, most) - len(self._accepted) - 1))

    def _late(self) -> DeadlineMissed:
        what = "was not complete" if self._accepted else "had no token"
        return DeadlineMissed(
            f"{self._request.priority.name.lower()} request {what} by its deadline",
            advice="allow more time, or come back later",
            retry_after_s=self._floor.intake.estimate().service_s,
        )


class _Late(Exception):
    """Carries the error past those of the intake, which has told its own."""

    def __init__(self, error: DeadlineMissed) -> None:
        super().__init__(str(error))
        self.error = error
