"""A clock that only moves when told to, for tests of anything that takes a `Clock`.

    clock = VirtualClock()
    lease = Lease(clock=clock)          # your code: reads clock.monotonic_s()
    clock.sleep(3600.0)                 # returns at once; an hour has passed
    clock.step_wall(-3600.0)            # what NTP does to a box without a battery: monotonic time must not care
    assert lease.is_expired

`kensho.testing.loop.run_virtual` lets an asyncio program live on such a clock.
"""

from kensho.base.clock import Seconds


class VirtualClock:
    """Satisfies `base.clock.Clock`. Starts at monotonic `start_s` and wall time `wall_s`. Not thread-safe."""

    def __init__(self, *, start_s: Seconds = 1000.0, wall_s: Seconds = 1_800_000_000.0) -> None:
        self._monotonic_s = start_s
        self._wall_s = wall_s

    def monotonic_s(self) -> Seconds:
        return self._monotonic_s

    def wall_s(self) -> Seconds:
        return self._wall_s

    def sleep(self, duration_s: Seconds) -> None:
        """Advance both clocks by `duration_s` (>= 0) and return at once."""
        if duration_s < 0:
            raise ValueError(f"time does not run backwards: {duration_s} s")
        self._monotonic_s += duration_s
        self._wall_s += duration_s

    def step_wall(self, by_s: Seconds) -> None:
        """Move the wall clock alone, either way, as NTP or a person does."""
        self._wall_s += by_s
