"""Time is passed in. `Clock` is what shells receive; pure functions receive `now` itself."""

import time
from typing import Protocol

Seconds = float
"""A duration, or a point on the monotonic clock, in seconds."""


class Clock(Protocol):
    """Two clocks with two uses: never measure a duration with the wall clock (it is stepped by NTP and by people)."""

    def monotonic_s(self) -> Seconds: ...

    def wall_s(self) -> Seconds:
        """Seconds since 1970 UTC, for records that people read and for expiry dates."""
        ...

    def sleep(self, duration_s: Seconds) -> None: ...


class SystemClock:
    """The machine's clocks."""

    # The functions themselves: a method around one would cost as much again, and there are paths that count it.
    monotonic_s = staticmethod(time.monotonic)
    wall_s = staticmethod(time.time)
    sleep = staticmethod(time.sleep)
