"""Requests wait here until an engine is free for them: the shell around `admission.AdmissionQueue`.

Whoever gets a `Turn` holds its engine and gives it back with `give_back`, exactly once. A request that is refused, late
or evicted while it waits gets the reason as an exception; a cancelled one leaves in O(1). When somebody urgent waits
and no engine is free, a less important turn is asked to stop (`Turn.cut`): it gives back, and waits again with
`wait_again`.
"""

import asyncio
from collections.abc import Callable, Sequence

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import KenshoError
from kensho.base.events import Emit, RequestRejected, admission_changed
from kensho.base.structs import Struct
from kensho.resilience.admission import AdmissionQueue, Candidate, Estimate, Priority, Refused, Ticket
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import ONE, RecentTimes, Work
from kensho.resilience.pressure import Level

_NEXT_STEPS = {
    Level.NORMAL: "everything is taken in",
    Level.PRESSURED: "low requests that would wait long are refused",
    Level.SATURATED: "overloaded, pausing unimportant work: normal and low requests that would wait long are refused",
}

_SPARE = 2.0
"""So many times what it needs must be left to whom a CRITICAL request interrupts. Simulated at 10 x on one engine: 0.9%
of the work is late, and 1.1% with 1; 0.7% with 3, but CRITICAL's p99 at 2 x is then 2.2 times unloaded, not 1.4."""
_LOOK_AGAIN_S = 1.0  # the level also falls when nothing happens; it is announced at most this late
_LEAST_WAIT_S = 0.001  # between two looks at a deadline, since loops may call a hair too early


class Turn(Struct, frozen=False, eq=False):
    """The right to use one engine."""

    ticket: Ticket
    engine: str | None
    """None: no engine takes requests now; whoever gets this says so to its client."""
    began_s: Seconds
    held_s: Seconds = 0.0
    """How long the same request had an engine before, in other turns; and with this one, once it was given back."""
    due_s: Seconds = 0.0
    """Its work must be done by then; infinite once a reader has seen tokens of it."""
    cut: Callable[[], None] | None = None
    """Set by the holder if it can be interrupted; called at most once."""
    is_cut: bool = False

    def bears(self, urgent: Ticket, free_s: Seconds, needed_s: Seconds) -> bool:
        """Whether it may be cut for `urgent`, who will leave its engine free at `free_s`, when it needs `needed_s` in
        all itself.

        LOW work gives way to all who are urgent. HIGH and NORMAL work gives way to CRITICAL requests, and only if it
        can still be in time after them, with `_SPARE` for the next interruption: to break one promise for another would
        be no gain.
        """
        if self.ticket.priority is Priority.LOW:
            return True
        is_above = urgent.priority is Priority.CRITICAL and self.ticket.priority is not Priority.CRITICAL
        return is_above and free_s + _SPARE * needed_s <= self.due_s


class Intake:
    """`candidates` gives the engines that take requests now, best first, with their times; `is_free` says whether one
    is idle; `is_hopeless`, when there is none, whether waiting is of no use. Call `pump` when an answer may have
    changed."""

    def __init__(
        self,
        settings: AdmissionSettings,
        *,
        model: str,
        candidates: Callable[[], tuple[Candidate, ...]],
        is_free: Callable[[str], bool],
        is_hopeless: Callable[[], bool],
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._queue = AdmissionQueue(settings)
        self._model = model
        self._candidates = candidates
        self._is_free = is_free
        self._is_hopeless = is_hopeless
        self._clock = clock
        self._emit = emit
        self._waiting: dict[int, asyncio.Future[Turn]] = {}
        self._held_s: dict[int, Seconds] = {}
        """Of those who wait again."""
        self._turns: dict[Turn, None] = {}  # a set whose order is that of time
        self._service_times = RecentTimes()
        self._level = Level.NORMAL
        self._level_timer: asyncio.TimerHandle | None = None
        self._closed: KenshoError | None = None

    @property
    def running(self) -> int:
        return len(self._turns)

    @property
    def level(self) -> Level:
        """As of the last time that something happened here."""
        return self._queue.level(self._clock.monotonic_s())

    def waiting(self) -> dict[Priority, int]:
        return self._queue.depths()

    def estimate(self) -> Estimate:
        now_s, candidates, times = self._clock.monotonic_s(), self._candidates(), self._service_times
        held = {turn.engine for turn in self._turns}
        idle = tuple(one.engine for one in candidates if one.engine not in held and self._is_free(one.engine))
        return Estimate(candidates, times.mean(now_s), times.p95(now_s), max(1, len(candidates)), idle)

    async def wait_for_turn(
        self,
        priority: Priority,
        deadline_s: Seconds,
        work: Work = ONE,
        engine: str | None = None,
        *,
        request: int = 0,
    ) -> Turn:
        """Returns with a turn held. Raises Overloaded or DeadlineMissed, and after `close` the error given there.

        `engine`: the only one that may serve it. `request`: its number, for the events.
        """
        if self._closed:
            raise self._closed
        now_s = self._clock.monotonic_s()
        ticket, refused = self._queue.offer(
            priority, deadline_s, now_s, self.estimate(), work=work, engine=engine, request=request
        )
        return await self._wait(ticket, refused)

    async def wait_again(
        self, turn: Turn, deadline_s: Seconds, work: Work, *, avoids: str = "", is_urgent: bool = False
    ) -> Turn:
        """After `give_back`, for a request that is not done. Never refused, unless `deadline_s` is finite.

        `is_urgent`: it lost its engine, or was asked to stop; others may be asked to make room for it.
        """
        if self._closed:
            raise self._closed
        now_s = self._clock.monotonic_s()
        ticket = self._queue.resume(turn.ticket, deadline_s, work, now_s, avoids=avoids, is_urgent=is_urgent)
        self._held_s[ticket.number] = turn.held_s
        try:
            return await self._wait(ticket, [])
        finally:
            del self._held_s[ticket.number]

    def claim(self, turn: Turn) -> Turn | None:
        """A second engine for the holder of `turn`, if one is idle and nobody waits for it."""
        ticket = turn.ticket
        if self._closed or len(self._queue):
            return None
        idle = self.estimate().idle
        engine = next((one for one in idle if one != turn.engine and ticket.may_use(one, has_others=False)), None)
        return None if engine is None else self._begin(ticket, engine)

    def give_back(self, turn: Turn) -> None:
        """The engine is free again. Idempotent."""
        if turn not in self._turns:
            return
        del self._turns[turn]
        if turn.engine is not None:
            turn.held_s += self._clock.monotonic_s() - turn.began_s
        self.pump()

    def done(self, turn: Turn) -> None:
        """The request of `turn`, its last one, is over: the engine is free, and what it held in all is one service
        time, however often it was interrupted or moved."""
        self.give_back(turn)
        if turn.held_s > 0:
            self._service_times.add(turn.held_s, self._clock.monotonic_s())

    def pump(self) -> None:
        """Give free engines to those who wait."""
        if self._closed:
            return
        estimate = self.estimate()
        if not estimate.candidates and len(self._queue) and self._is_hopeless():
            while self._start_one(estimate, None):
                pass  # each is told that there is no engine
        for engine in estimate.idle:
            self._start_one(estimate, engine)
        while (stranded := self._queue.take_stranded(estimate)) is not None:
            self._start(stranded, None)
        self._interrupt(estimate)
        self._note_level(estimate)

    def close(self, error: KenshoError) -> None:
        """Everyone who waits, and everyone who comes later, gets `error`; what was announced is taken back.
        Idempotent."""
        self._tell_level(Level.NORMAL)
        self._closed = error
        if self._level_timer:
            self._level_timer.cancel()
        for turn in self._waiting.values():
            turn.set_exception(error)
        self._waiting.clear()

    async def _wait(self, ticket: Ticket, refused: Sequence[Refused]) -> Turn:
        future = self._waiting[ticket.number] = asyncio.get_running_loop().create_future()
        self._refuse(refused)
        self.pump()
        try:
            while not future.done():
                now_s, estimate = self._clock.monotonic_s(), self.estimate()
                left_s = ticket.deadline_s - estimate.needed_s(ticket) - now_s
                if left_s <= 0:
                    expired = self._queue.expire(ticket, now_s, estimate)
                    self._refuse([expired] if expired else [])
                    self._note_level(estimate)
                else:
                    left = None if left_s == float("inf") else max(left_s, _LEAST_WAIT_S)
                    await asyncio.wait({future}, timeout=left)
        except asyncio.CancelledError:
            if not future.done():
                self._waiting.pop(ticket.number)
                self._queue.cancel(ticket)
            elif future.exception() is None:
                self.give_back(future.result())
            raise
        turn: Turn = future.result()
        return turn

    def _start_one(self, estimate: Estimate, engine: str | None) -> bool:
        ticket, refused = self._queue.take(self._clock.monotonic_s(), estimate, engine)
        self._refuse(refused)
        if ticket is None:
            return False
        self._start(ticket, engine)
        return True

    def _start(self, ticket: Ticket, engine: str | None) -> None:
        self._waiting.pop(ticket.number).set_result(self._begin(ticket, engine))

    def _begin(self, ticket: Ticket, engine: str | None) -> Turn:
        held_s = self._held_s.get(ticket.number, 0.0)
        turn = Turn(ticket, engine, self._clock.monotonic_s(), held_s, ticket.deadline_s)
        self._turns[turn] = None
        return turn

    def _interrupt(self, estimate: Estimate) -> None:
        """Turns make room for the urgent who wait, one each: for one who can use its engine, and in time, or its
        holder would have it back at once. The least important first, and of those the youngest."""
        turns = [turn for turn in self._turns if turn.cut and turn.ticket.priority is not Priority.CRITICAL]
        now_s, has_others = self._clock.monotonic_s(), len(estimate.candidates) > 1
        # Room that is being made counts first.
        turns.sort(key=lambda turn: (not turn.is_cut, -turn.ticket.priority, -turn.began_s))
        for ticket in self._queue.urgent():
            if not turns:
                return
            for turn in turns:
                engine = turn.engine or ""
                is_in_time = now_s + estimate.needed_s(ticket, engine) <= ticket.deadline_s
                if not is_in_time or not ticket.may_use(engine, has_others=has_others):
                    continue
                free_s = now_s + estimate.holds_s(ticket, engine)
                if turn.is_cut or turn.bears(ticket, free_s, estimate.needed_s(turn.ticket, engine)):
                    turns.remove(turn)
                    if turn.cut and not turn.is_cut:
                        turn.is_cut = True
                        turn.cut()
                    break

    def _refuse(self, refused: Sequence[Refused]) -> None:
        for one in refused:
            self._emit(
                RequestRejected(
                    model=self._model,
                    request=one.ticket.request,
                    priority=one.ticket.priority.name.lower(),
                    reason=one.reason,
                    retry_after_s=one.retry_after_s,
                )
            )
            self._waiting.pop(one.ticket.number).set_exception(one.error())

    def _note_level(self, estimate: Estimate) -> None:
        if self._closed:
            return
        self._queue.look(self._clock.monotonic_s(), estimate)
        level = self.level
        self._tell_level(level)
        if level is not Level.NORMAL and self._level_timer is None:
            self._level_timer = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._look_again)

    def _tell_level(self, level: Level) -> None:
        before, self._level = self._level, level
        if level is not before:
            self._emit(
                admission_changed(
                    model=self._model, from_level=before.value, to_level=level.value, next_step=_NEXT_STEPS[level]
                )
            )

    def _look_again(self) -> None:
        self._level_timer = None
        self._note_level(self.estimate())
