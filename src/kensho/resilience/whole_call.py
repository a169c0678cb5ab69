"""A call that answers in one piece (a tensor request, such as logits): dispatched again once if its engine fails.

Nothing of it has been seen when an engine fails, so it simply runs again, on another engine where there is one. A
second failure is told: a third engine would not help a request that ends two.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from kensho.base.clock import Clock, Seconds
from kensho.base.inference import Engine
from kensho.resilience.engine_use import EngineUse, OnEnd
from kensho.resilience.estimate import EngineTimes, Work
from kensho.resilience.failover import FailoverSettings, StreamProgress
from kensho.resilience.guard import Guard
from kensho.resilience.intake import Turn
from kensho.resilience.life import Life
from kensho.resilience.request import Floor, Request

T = TypeVar("T")


class WholeCall(Life, Generic[T]):
    """`answer` it once."""

    def __init__(self, request: Request, floor: Floor, call: Callable[[Engine], Awaitable[T]]) -> None:
        super().__init__(request, StreamProgress(floor.clock.monotonic_s()), floor)
        self._call = call
        self._results: list[T] = []

    async def answer(self) -> T:
        """The result of `call` on the engine whose turn it is. Raises what `run` raises; a ConfigError, say, of `call`
        is no engine's failure."""
        await self.run()
        return self._results[0]

    def _use(self, turn: Turn) -> EngineUse:
        floor = self._floor
        return _CallUse(
            floor.guards[str(turn.engine)],
            self._call,
            len(self._request.prompt_ids),
            take=self._results.append,
            times=floor.times[str(turn.engine)],
            settings=floor.settings,
            clock=floor.clock,
            on_end=self._use_ended,
        )

    def _work(self) -> Work:
        return Work(len(self._request.prompt_ids))

    @property
    def _missing(self) -> int:
        return 0 if self._results else 1

    @property
    def _due_s(self) -> Seconds:
        return self._request.deadline_s

    @property
    def _max_moves(self) -> int:
        return 1

    @property
    def _shortfall(self) -> str:
        return "was not complete"


class _CallUse(EngineUse, Generic[T]):
    """One engine's try. It is as silent as before a first token, and takes as long."""

    def __init__(
        self,
        guard: Guard,
        call: Callable[[Engine], Awaitable[T]],
        ids: int,
        *,
        take: Callable[[T], None],
        times: EngineTimes,
        settings: FailoverSettings,
        clock: Clock,
        on_end: OnEnd,
    ) -> None:
        self._call = call
        self._ids = ids
        self._take = take
        self._times = times
        super().__init__(guard, settings=settings, clock=clock, on_end=on_end)

    async def _work(self) -> bool:
        self._expect_first(self._ids)
        try:
            result = await self._call(self._guard.engine)
        except asyncio.CancelledError:
            self._note_stop(self._ids, self._times)
            raise
        took_s = self._watch.came()
        self._guard.silence.first(took_s, self._ids)
        self._times.prefilled(self._ids, took_s, self._watch.now_s)
        self._take(result)
        return True
