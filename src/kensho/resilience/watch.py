"""The watch over an engine that somebody waits for: one that stays silent longer than expected is killed.

    watch.expect(8.0)           # a token, or that it has stopped, within so many seconds
    took_s = watch.came()       # there it is; what is done with it is not the engine's time
    watch.expect(1.0)

One timer a use, not one a token. That nobody wants the answer any more changes nothing: an engine obeys a cancel
between two steps, so it has stopped within the time that it has for a step, or it hangs.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineHung, KenshoError
from kensho.base.inference import Engine

_LOOP_STALLED_S: Seconds = 0.05
"""A timer that rings later than this says that this process did not run, and nothing about the engine."""


class Watch:
    """Over one use of `engine`. `keep` gets the task that kills it, which may outlive the use."""

    def __init__(self, engine: Engine, clock: Clock, keep: Callable[["asyncio.Task[None]"], None]) -> None:
        self._engine = engine
        self._clock = clock
        self._keep = keep
        self._deadline_s: Seconds | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._first_s = 0.0
        self.since_s = clock.monotonic_s()
        """When the present wait began."""
        self.now_s = self.since_s
        """When the last token came."""
        self.tokens = 0
        self.is_paused = False
        """What happens now is not the engine's doing."""
        self.has_killed = False

    def expect(self, within_s: Seconds) -> None:
        """A wait for the engine begins."""
        self.since_s = self._clock.monotonic_s()
        self.is_paused = False
        self._deadline_s = self.since_s + within_s
        loop = asyncio.get_running_loop()
        if self._timer and self._timer.when() > loop.time() + within_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_later(within_s, self._look)

    def came(self) -> Seconds:
        """A token came, after so long. Until the next `expect` the engine has time."""
        self.now_s = self._clock.monotonic_s()
        self._deadline_s, self.is_paused = None, True
        if self.tokens == 0:
            self._first_s = self.now_s
        self.tokens += 1
        return self.now_s - self.since_s

    @property
    def pace_s(self) -> Seconds | None:
        """From one token to the next, in the mean; None for fewer than two."""
        return (self.since_s - self._first_s) / (self.tokens - 1) if self.tokens > 1 else None

    def hung(self) -> EngineHung:
        """What is to be said of an engine that this watch has killed."""
        return EngineHung(
            f"engine {self._engine.name} was silent for too long; its host was killed", advice="another engine goes on"
        )

    def close(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._deadline_s is None:
            return
        now_s = self._clock.monotonic_s()
        if now_s - self._deadline_s > _LOOP_STALLED_S:  # what the engine said meanwhile is still to be read
            self._deadline_s = now_s + _LOOP_STALLED_S
        left_s = self._deadline_s - now_s
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._look)
        else:
            self.has_killed = True
            self._keep(asyncio.create_task(self._kill()))

    async def _kill(self) -> None:
        with suppress(KenshoError):  # the circuit kills it too, and acts on what comes of that
            await self._engine.kill()
