"""How hard pressed a queue is: NORMAL, PRESSURED or SATURATED (row S5). Pure; `now_s` is passed in, monotonic.

PRESSURED: the median waiting request has used up a share of the time that it may wait, for a while. SATURATED: so many
rejections for want of capacity within a window; it ends when the last so many span more than that. The level is a
question; what it is an answer to, is told by `rejected` and `look`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from enum import StrEnum

from kensho.base.clock import Seconds


class Level(StrEnum):
    NORMAL = "NORMAL"
    PRESSURED = "PRESSURED"
    """LOW newcomers are refused if they would wait long."""
    SATURATED = "SATURATED"
    """NORMAL and LOW newcomers are refused if they would wait long."""


LOOK_EVERY_S = 0.1
"""How often the whole queue is looked at."""


class Pressure:
    def __init__(self, *, rejections: int, window_s: Seconds, share: float, after_s: Seconds) -> None:
        """`rejections` within `window_s`: SATURATED. More than `share` of the time used, for `after_s`: PRESSURED."""
        self._window_s = window_s
        self._share = share
        self._after_s = after_s
        self._rejected_at_s: deque[Seconds] = deque(maxlen=rejections)
        self._is_slow = False
        self._slow_since_s = 0.0
        self._looked_at_s = float("-inf")

    def level(self, now_s: Seconds) -> Level:
        rejected_at_s = self._rejected_at_s
        if len(rejected_at_s) == rejected_at_s.maxlen and now_s - rejected_at_s[0] < self._window_s:
            return Level.SATURATED
        is_pressed = self._is_slow and now_s - self._slow_since_s >= self._after_s
        return Level.PRESSURED if is_pressed else Level.NORMAL

    def rejected(self, now_s: Seconds) -> None:
        """Somebody was refused for want of capacity."""
        self._rejected_at_s.append(now_s)

    def look(self, now_s: Seconds, used: Callable[[], Iterable[float]]) -> None:
        """Have another look at those who wait, if the last one was a while ago.

        `used` gives for each of them the share of its time that it has used up.
        """
        if now_s - self._looked_at_s < LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        was_slow, shares = self._is_slow, sorted(used())
        self._is_slow = bool(shares) and shares[len(shares) // 2] > self._share
        if self._is_slow and not was_slow:
            self._slow_since_s = now_s
