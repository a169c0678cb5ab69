"""An asyncio event loop on virtual time: a test of a day's work takes as long as its callbacks, and never sleeps.

    async def patient() -> float:
        await asyncio.sleep(24 * 3600)
        return asyncio.get_running_loop().time()

    clock = VirtualClock()
    assert run_virtual(patient(), clock=clock) == clock.monotonic_s()

How: the loop's selector never waits. When nothing is ready, it moves the clock to the next timer instead. If there
is no timer either, nothing can ever happen again, and the run ends with `Stuck` instead of hanging the test; so it
does when a week has passed, for programs with a timer that rings for ever.

For pure asyncio code (tasks, timers, queues, scripted engines). Real sockets are polled, but never waited for: time
would run past them. Threads (`asyncio.to_thread`) and child processes need the ordinary loop.
"""

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from kensho.base.clock import Seconds
from kensho.testing.clock import VirtualClock

T = TypeVar("T")


class Stuck(RuntimeError):
    """Every task waits for something that nobody will do: a deadlock, found the moment it happens; or time is up."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` is the clock's monotonic time; waiting for a timer moves the clock."""

    def __init__(self, clock: VirtualClock, *, limit_s: Seconds) -> None:
        self._virtual_clock = clock
        super().__init__(_JumpingSelector(clock, clock.monotonic_s() + limit_s))

    def time(self) -> Seconds:
        return self._virtual_clock.monotonic_s()


def run_virtual(
    main: Coroutine[Any, Any, T], *, clock: VirtualClock | None = None, limit_s: Seconds = 7 * 86_400.0
) -> T:
    """Run `main` to its end on virtual time and return its result, as `asyncio.run` does on real time.

    `clock` is the one that the code under test reads; without it the loop makes its own. Raises `Stuck` on a deadlock,
    or after `limit_s` of virtual time. Tasks that `main` leaves behind are cancelled. Not callable from inside a
    running loop.
    """
    on = clock or VirtualClock()
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(on, limit_s=limit_s)) as runner:
        return runner.run(main)


class _JumpingSelector(selectors.BaseSelector):
    """The system's selector, asked only what is ready now; a time-out moves the clock instead of passing."""

    def __init__(self, clock: VirtualClock, until_s: Seconds) -> None:
        self._clock = clock
        self._until_s = until_s
        self._system = selectors.DefaultSelector()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._system.select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise Stuck("nothing is ready and no timer is set: every task waits for another")
        if self._clock.monotonic_s() >= self._until_s:
            self._until_s = float("inf")  # once: the tasks that are cancelled now may still need time to end
            raise Stuck("the limit of virtual time has passed, and the main coroutine has not ended")
        self._clock.sleep(max(0.0, timeout))
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._system.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._system.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._system.modify(fileobj, events, data)

    def close(self) -> None:
        self._system.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._system.get_map()
