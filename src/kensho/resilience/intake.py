"""Requests wait here until an engine is free for them: the shell around `admission.AdmissionQueue`.

Whoever returns from `wait_for_turn` holds one slot and gives it back with `end_turn`, exactly once. A request that
is refused, late or evicted while it waits gets the reason as an exception; a cancelled one leaves in O(1).
"""

import asyncio
from collections.abc import Callable, Sequence

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import KenshoError
from kensho.base.events import AdmissionChanged, Emit, RequestRejected
from kensho.resilience.admission import (
    AdmissionQueue,
    AdmissionSettings,
    Estimate,
    Level,
    Priority,
    Refused,
    ServiceTimes,
)

_NEXT_STEPS = {
    Level.NORMAL: "everything is taken in",
    Level.PRESSURED: "low requests are refused while others wait",
    Level.SATURATED: "overloaded, pausing unimportant work: normal and low requests are refused while others wait",
}

_LOOK_AGAIN_S = 1.0  # the level also falls when nothing happens; it is announced at most this late


class Intake:
    """`slots` says how many requests may run at once now; call `pump` when its answer may have grown."""

    def __init__(
        self, settings: AdmissionSettings, *, model: str, slots: Callable[[], int], clock: Clock, emit: Emit
    ) -> None:
        self._queue = AdmissionQueue(settings)
        self._model = model
        self._slots = slots
        self._clock = clock
        self._emit = emit
        self._turns: dict[int, asyncio.Future[None]] = {}
        self._running = 0
        self._first_token_times = ServiceTimes()
        self._service_times = ServiceTimes()
        self._level = Level.NORMAL
        self._level_timer: asyncio.TimerHandle | None = None
        self._closed: KenshoError | None = None

    @property
    def running(self) -> int:
        return self._running

    @property
    def level(self) -> Level:
        return self._queue.level(self._clock.monotonic_s(), self.estimate())

    def waiting(self) -> dict[Priority, int]:
        return self._queue.depths()

    def estimate(self) -> Estimate:
        now_s = self._clock.monotonic_s()
        return Estimate(self._first_token_times.p95_s(now_s), self._service_times.mean_s(now_s), self._slots())

    async def wait_for_turn(self, priority: Priority, deadline_s: Seconds) -> None:
        """Returns with a slot taken. Raises Overloaded or DeadlineMissed, and after `close` the error given there."""
        if self._closed:
            raise self._closed
        now_s = self._clock.monotonic_s()
        ticket, refused = self._queue.offer(priority, deadline_s, now_s, self.estimate())
        turn = self._turns[ticket.number] = asyncio.get_running_loop().create_future()
        self._refuse(refused)
        self.pump()
        try:
            if not turn.done():
                await asyncio.wait({turn}, timeout=deadline_s - now_s)
        except asyncio.CancelledError:
            if not turn.done():
                self._turns.pop(ticket.number)
                self._queue.cancel(ticket)
            elif turn.exception() is None:
                self._free()
            raise
        if not turn.done():
            expired = self._queue.expire(ticket, self._clock.monotonic_s(), self.estimate())
            self._refuse([expired] if expired else [])
        turn.result()

    def first_token_came(self, after_s: Seconds) -> None:
        """Of a request that nothing disturbed: how long it took from its turn to its first token."""
        self._first_token_times.add(after_s, self._clock.monotonic_s())

    def end_turn(self, after_s: Seconds) -> None:
        """The slot is free again, after having been held for `after_s`."""
        self._service_times.add(after_s, self._clock.monotonic_s())
        self._free()

    def pump(self) -> None:
        """Give free slots to those who wait."""
        if self._closed:
            return
        while self._running < self._slots():
            ticket, refused = self._queue.take(self._clock.monotonic_s(), self.estimate())
            self._refuse(refused)
            if ticket is None:
                break
            self._running += 1
            self._turns.pop(ticket.number).set_result(None)
        self._note_level()

    def close(self, error: KenshoError) -> None:
        """Everyone who waits, and everyone who comes later, gets `error`. Idempotent."""
        self._closed = error
        if self._level_timer:
            self._level_timer.cancel()
        for turn in self._turns.values():
            turn.set_exception(error)
        self._turns.clear()

    def _free(self) -> None:
        self._running -= 1
        self.pump()

    def _refuse(self, refused: Sequence[Refused]) -> None:
        for one in refused:
            priority = one.ticket.priority.name.lower()
            self._emit(RequestRejected(priority=priority, reason=one.reason, retry_after_s=one.retry_after_s))
            self._turns.pop(one.ticket.number).set_exception(one.error())

    def _note_level(self) -> None:
        if self._level_timer:
            self._level_timer.cancel()
        before, level = self._level, self.level
        self._level = level
        if level is not before:
            self._emit(
                AdmissionChanged(
                    model=self._model, from_level=before.value, to_level=level.value, next_step=_NEXT_STEPS[level]
                )
            )
        if level is not Level.NORMAL:
            self._level_timer = asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self._note_level)
