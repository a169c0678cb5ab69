"""The life of one request, from the queue to its outcome, which is told exactly once.

It waits for its turn, uses the turn's engine, and waits again when that engine was lost (failover) or taken away from
it. Whatever ends it (the answer, its deadline, somebody who does not want it any more) ends it at that moment: an
engine that is still busy with it is left to itself (`engine_use`). What is asked of an engine, and where the answer
goes, is said by those who are made from this: `stream_life` and `whole_call`.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable

from kensho.base.clock import Seconds
from kensho.base.errors import DeadlineMissed, EngineError, KenshoError, Overloaded
from kensho.base.events import RequestPoisoned
from kensho.resilience.engine_use import EngineLost, EngineUse
from kensho.resilience.estimate import Work
from kensho.resilience.failover import Finish, GiveUp, StreamProgress, after_failure, nobody_left
from kensho.resilience.intake import Turn
from kensho.resilience.poison import DEADLY
from kensho.resilience.request import Floor, Outcome, Request

_STEP_S: Seconds = 0.25
"""So long an engine that was to make room for somebody counts as room that is being made; then another stream makes
room instead. Several steps of a slow engine. Guess."""


class Life(ABC):
    """`run` it once."""

    def __init__(self, request: Request, progress: StreamProgress, floor: Floor) -> None:
        self.progress = progress
        self._request = request
        self._floor = floor
        self._uses: dict[EngineUse, Turn] = {}
        """One, or two of a request that is hedged. Those that were left are not among them."""
        self._ended: asyncio.Queue[EngineUse] = asyncio.Queue()
        self._limit = asyncio.timeout(None)
        self._why: EngineError | None = None
        self._avoids = ""
        self._is_urgent = True
        """When it waits again: it lost its engine, or made room, and others may have to make room for it."""
        self._is_answered = False
        self._is_told = False

    async def run(self) -> None:
        """Returns when the answer is complete. Raises Overloaded, DeadlineMissed, PoisonRequest, EngineError when no
        engine is left, and what the request itself is to be blamed for."""
        floor, asked = self._floor, (self._request.prompt_ids, self._request.sampling)
        outcome: Outcome = "failed"
        floor.retries.earn()
        try:
            floor.lasting.poison.check(*asked, floor.clock.monotonic_s())
            await self._answer()
            outcome, self._is_answered = "ok", True
            floor.lasting.poison.clear(*asked)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except DeadlineMissed:
            outcome = "deadline"
            raise
        except KenshoError as error:
            raise floor.closing() or error from error.__cause__
        except Exception as error:  # a reader who is not told takes a part of the answer for all of it
            words = f"the request failed in a way of its own: {type(error).__name__}: {error}"[:500]
            raise EngineError(words, advice="report it") from error
        finally:
            self.settle(outcome)

    def settle(self, outcome: Outcome) -> None:
        """Tell the outcome, unless it has been told."""
        if not self._is_told:
            self._is_told = True
            self._floor.finished(self._request, outcome, self.progress.record)

    async def _answer(self) -> None:
        request, intake = self._request, self._floor.intake
        if request.engine is not None:
            await self._load(request.engine)
        turn = await self._granted(
            intake.wait_for_turn(
                request.priority, request.deadline_s, self._work(), request.engine, request=request.number
            )
        )
        try:
            while not await self._hold(turn):
                turn = await self._granted(
                    intake.wait_again(turn, self._due_s, self._work(), avoids=self._avoids, is_urgent=self._is_urgent)
                )
                self._avoids = ""  # it has been avoided once; until it is lost again, it is as good as any
        finally:
            intake.done(turn)

    async def _load(self, engine: str) -> None:
        """Have the engine loaded that alone may answer. That a deadline has passed already is the intake's to tell."""
        if not self._request.deadline_s > self._floor.clock.monotonic_s():
            return
        try:
            async with asyncio.timeout_at(self._request.deadline_s):
                await self._floor.bring_up(engine)
        except TimeoutError:
            raise self._late() from None

    async def _granted(self, waiting: Awaitable[Turn]) -> Turn:
        try:
            return await waiting
        except Overloaded:
            self._is_told = True  # as a rejection, by the intake
            raise

    async def _hold(self, turn: Turn) -> bool:
        """Use the turn's engine until the answer is complete. False: it was lost, or taken away, on the way."""
        due_s = self._due_s
        try:
            if turn.engine is None:
                guards = self._floor.guards.values()
                asked = [guard for guard in guards if self._request.engine in {None, guard.name}]
                raise nobody_left(asked, "no engine can take it now") from self._why
            async with asyncio.timeout_at(None if due_s == float("inf") else due_s) as self._limit:
                self._begin(turn)
                return await self._until_complete(turn)
        except TimeoutError:
            if not self._limit.expired():
                raise
            if not turn.is_cut:
                raise self._late() from None
            self.progress.pauses += 1
            await self._make_room()
            return False
        finally:
            for use in [*self._uses]:
                self._leave(use)
            self._floor.intake.give_back(turn)

    def _begin(self, turn: Turn) -> None:
        self._uses[self._use(turn)] = turn

    async def _until_complete(self, first: Turn) -> bool:
        while True:
            use = await self._ended.get()
            turn = self._uses.pop(use, None)
            if turn is None:
                continue  # left a moment ago
            self._floor.intake.give_back(turn)
            if use.loss is None:
                return self._is_complete(use)
            if turn is first or not self._uses:  # a second engine that is lost in a race is none that it was moved from
                self._note_loss(use.loss)
            if not self._uses:
                return self._move_on(use.loss)

    def _is_complete(self, use: EngineUse) -> bool:
        return use.is_complete()

    def _leave(self, use: EngineUse) -> None:
        use.leave()
        self._floor.intake.give_back(self._uses.pop(use))

    async def _make_room(self) -> None:
        """For somebody more urgent, who gets the engine when it has stopped. The turn is held for that step, so that
        nobody else is interrupted for the same."""
        left_s = min(_STEP_S, self._due_s - self._floor.clock.monotonic_s())
        for use in [*self._uses]:
            del self._uses[use]
            use.leave()
            await use.wait(max(0.0, left_s))

    def _use_ended(self, use: EngineUse) -> None:
        if use.loss is not None:
            self._blame(use.loss)
        if use in self._uses:
            self._ended.put_nowait(use)
        else:
            self._floor.pump()

    def _blame(self, lost: EngineLost) -> None:
        """The engine may have died of this request; not so if that was answered, there or elsewhere."""
        if not lost.was_working or self._is_answered or self._missing <= 0:
            return
        floor, request = self._floor, self._request
        deaths = floor.lasting.poison.blame(request.prompt_ids, request.sampling, lost.why, floor.clock.monotonic_s())
        if deaths == DEADLY:
            floor.emit(RequestPoisoned(model=floor.model, prompt_tokens=len(request.prompt_ids), hosts=deaths))

    def _note_loss(self, lost: EngineLost) -> None:
        self.progress.lost(lost.engine, lost.why, lost.silent_since_s)
        self._why, self._avoids = lost.why, lost.engine

    def _move_on(self, lost: EngineLost) -> bool:
        """No engine works for it any more. True: nothing is missing. Raises EngineError to give up, and PoisonRequest
        when this request has killed its second host."""
        floor = self._floor
        if self._missing > 0:
            floor.lasting.poison.check(self._request.prompt_ids, self._request.sampling, floor.clock.monotonic_s())
        has_opened = not floor.guards[lost.engine].admits
        move = after_failure(
            missing=self._missing,
            moves=self.progress.failovers,
            max_moves=self._max_moves,
            may_repeat=self._missing <= 0 or has_opened or floor.retries.spend(),
        )
        if isinstance(move, GiveUp):
            raise nobody_left(tuple(floor.guards.values()), move.reason) from lost.why
        return isinstance(move, Finish)

    def _late(self) -> DeadlineMissed:
        return DeadlineMissed(
            f"{self._request.priority.name.lower()} request {self._shortfall} by its deadline",
            advice="allow more time, or come back later",
            retry_after_s=self._floor.intake.estimate().service_s,
        )

    # --- what is asked, and what of it is there ---

    @abstractmethod
    def _use(self, turn: Turn) -> EngineUse:
        """Ask the turn's engine."""

    @abstractmethod
    def _work(self) -> Work:
        """What its deadline is about."""

    @property
    @abstractmethod
    def _missing(self) -> int:
        """How much of the answer is still to be made; 0: all is there."""

    @property
    @abstractmethod
    def _due_s(self) -> Seconds:
        """When what it is about must be there; infinite once a reader has seen tokens of it."""

    @property
    @abstractmethod
    def _max_moves(self) -> int:
        """When it has lost more engines than these it is given up."""

    @property
    @abstractmethod
    def _shortfall(self) -> str:
        """What a deadline has missed, in words."""
