"""A request whose answer comes token by token.

It is moved with the tokens that were accepted, cut at a token for somebody more urgent, stopped while its reader does
not read, and asked of a second engine if it is CRITICAL and the first one is late. What the reader sees comes through
`outlet`, in order, each token once.
"""

import asyncio
from collections.abc import AsyncGenerator

from kensho.base.clock import Seconds
from kensho.base.errors import DeadlineMissed, EngineError, KenshoError
from kensho.base.events import Event
from kensho.resilience.admission import Priority
from kensho.resilience.engine_use import EngineUse, TokenUse
from kensho.resilience.estimate import Work
from kensho.resilience.failover import StreamProgress, StreamRecord
from kensho.resilience.intake import Turn
from kensho.resilience.life import Life
from kensho.resilience.outlet import Outlet
from kensho.resilience.request import Floor, Request

_FOREVER: Seconds = float("inf")


class StreamLife(Life):
    """`run` it as a task; read `outlet`."""

    def __init__(self, request: Request, progress: StreamProgress, outlet: Outlet, floor: Floor) -> None:
        super().__init__(request, progress, floor)
        self.outlet = outlet
        self._accepted: list[int] = []
        self._late_timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Raises nothing but CancelledError: the reader is told through the outlet."""
        end: KenshoError | None = EngineError("the request was cancelled", advice="ask again")
        try:
            await super().run()
            end = None
        except asyncio.CancelledError:
            end = self._floor.closing() or end
            raise
        except KenshoError as error:
            end = error
        finally:
            self.outlet.end(end)
            if self._request.is_whole:
                self._learn_length(end)

    async def _hold(self, turn: Turn) -> bool:
        try:
            is_complete = await super()._hold(turn)
        finally:
            if self._late_timer:
                self._late_timer.cancel()
        self._is_urgent = not self.outlet.is_full
        if not self._is_urgent and not is_complete:
            self._floor.unread += 1
            try:
                await self.outlet.drained()
            finally:
                self._floor.unread -= 1
        return is_complete

    def _begin(self, turn: Turn) -> None:
        super()._begin(turn)
        loop, limit = asyncio.get_running_loop(), self._limit
        turn.cut = lambda: None if limit.expired() else limit.reschedule(loop.time())
        late_s = self._late_s(turn)
        if late_s > 0:
            self._floor.hedges.earn()
            self._late_timer = loop.call_later(late_s, self._ask_another, turn)

    def _use(self, turn: Turn) -> TokenUse:
        floor, engine = self._floor, str(turn.engine)
        return TokenUse(
            floor.guards[engine],
            self._request.prompt_ids,
            self._accepted,
            self._request.sampling,
            take=self._take,
            times=floor.times[engine],
            settings=floor.settings,
            clock=floor.clock,
            on_end=self._use_ended,
        )

    def _take(self, use: EngineUse, token: int) -> bool:
        """A token of `use`. False: it must stop, since it comes too late, or since nobody reads."""
        if not self._accepted and not self._takes_first(use):
            return False
        self._note(self.progress.token_made(use.engine, self._floor.clock.monotonic_s()))
        self._accepted.append(token)
        self.outlet.put(token)
        if self.outlet.is_full and self._missing:
            self.progress.pauses += 1
            return False
        return True

    def _takes_first(self, use: EngineUse) -> bool:
        if self._limit.expired():
            return False
        for rival in [other for other in self._uses if other is not use]:
            self._leave(rival)
        turn = self._uses[use]
        if not self._request.is_whole and not turn.is_cut:
            turn.due_s = _FOREVER
            self._limit.reschedule(None)
        return True

    def _ask_another(self, first: Turn) -> None:
        """The first token is late: from here on the one counts that comes first."""
        floor = self._floor
        if self._accepted or first not in self._uses.values() or not floor.hedges.is_left:
            return
        second = floor.intake.claim(first)
        if second is not None:
            floor.hedges.spend()
            self.progress.is_hedged = True
            super()._begin(second)

    def _late_s(self, turn: Turn) -> Seconds:
        """How long its first token may take before a second engine is asked; 0: none is."""
        if self._request.priority is not Priority.CRITICAL or self._accepted:
            return 0.0
        times = self._floor.times[str(turn.engine)].times(self._floor.clock.monotonic_s())
        return self._floor.settings.hedge_after * times.needed_s(Work(len(self._request.prompt_ids)))

    def _is_complete(self, use: EngineUse) -> bool:
        is_complete = super()._is_complete(use)
        if is_complete:
            self._note(self.progress.resumed(use.engine, self._floor.clock.monotonic_s()))
        return is_complete

    def _note(self, moved: Event | None) -> None:
        if moved is not None:
            self._floor.emit(moved)

    def _work(self) -> Work:
        """Of a whole answer as many steps as it may have, or as answers have had lately."""
        if not self._request.is_whole:
            return Work(len(self._request.prompt_ids) + len(self._accepted))
        is_critical = self._request.priority is Priority.CRITICAL  # begun by the median (`admission.Candidate`)
        prompt, most, made = len(self._request.prompt_ids), self._request.sampling.max_tokens, len(self._accepted)
        now_s = self._floor.clock.monotonic_s()
        return self._floor.lasting.lengths.work(prompt, most, made, now_s, by_median=is_critical)

    def _learn_length(self, end: KenshoError | None) -> None:
        lengths, now_s = self._floor.lasting.lengths, self._floor.clock.monotonic_s()
        most, made = self._request.sampling.max_tokens, len(self._accepted)
        if end is None:
            lengths.ended(most, made, now_s)
        elif isinstance(end, DeadlineMissed):
            lengths.stopped(most, made, now_s)

    @property
    def _missing(self) -> int:
        return self._request.sampling.max_tokens - len(self._accepted)

    @property
    def _due_s(self) -> Seconds:
        return _FOREVER if self._accepted and not self._request.is_whole else self._request.deadline_s

    @property
    def _max_moves(self) -> int:
        return self._floor.settings.max_moves

    @property
    def _shortfall(self) -> str:
        return "was not complete" if self._accepted else "had no token"


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
        """Cancel: returns at once. The engine stops within one step, or is killed. Idempotent."""
        await self._ids.aclose()
