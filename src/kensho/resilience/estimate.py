"""How long work will take, learnt from what was measured. No clock: moments are passed in, monotonic.

    seen = EngineTimes()
    seen.prefilled(ids=300, seconds=0.21, now_s=now_s)      # from the call to the first token
    seen.stepped(0.025, now_s)                              # from one token to the next
    seen.times(now_s).needed_s(Work(prompt_ids=250, steps=40))

Rules: (1) an estimate is a 95th percentile, because a mean starts work that ends too late (simulated at ten times the
load: 98 % against 61 % of goodput); (2) memory is bounded: 64 times of each kind; (3) what is older than a minute does
not count, so that one slow answer cannot refuse everything for ever; (4) what was never measured takes no time: the
first requests are let in.
"""

import math
from bisect import bisect_left, insort
from collections import deque

from kensho.base.clock import Seconds
from kensho.base.structs import Struct

WINDOW_S: Seconds = 60.0
SAMPLES = 64
"""Enough for a 95th percentile that three outliers do not move."""
STEPS_TOGETHER = 32
"""A time of a step is the mean of so many: one alone jitters with the machine, and what is asked about is their sum."""
REMAKE_S: Seconds = 0.01
FEW = 20
"""Of fewer samples the median is taken: their 95th percentile is their maximum, and one long prompt would refuse
everyone."""


class Work(Struct):
    """What a request asks of an engine by its deadline."""

    prompt_ids: int = 1
    """Ids to prefill before the first token."""
    steps: int = 0
    """Steps after the first token: 0 for a stream, whose deadline is that of its first token."""


ONE = Work()


class Times(Struct):
    """What one engine takes. All zero: nothing was measured lately."""

    prefill: tuple[tuple[int, Seconds], ...] = ()
    """(ids, seconds): so long takes a prefill of at most so many ids, first token included. By rising ids."""
    step_s: Seconds = 0.0

    def needed_s(self, work: Work) -> Seconds:
        """From the start of the work to the moment that its deadline is about."""
        return self._prefill_s(work.prompt_ids) + work.steps * self.step_s

    def _prefill_s(self, ids: int) -> Seconds:
        if not self.prefill:
            return self.step_s
        for limit, seconds in self.prefill:
            if ids <= limit:
                return seconds
        limit, seconds = self.prefill[-1]
        return seconds * ids / limit  # longer than any that was measured


class RecentTimes:
    """The last `SAMPLES` times, none older than `WINDOW_S`. Adding costs two searches in a short sorted list."""

    def __init__(self) -> None:
        self._by_age: deque[tuple[Seconds, float]] = deque()
        self._ranked: list[float] = []
        self._sum = 0.0

    def add(self, value: float, now_s: Seconds) -> None:
        if len(self._by_age) == SAMPLES:
            self._forget_oldest()
        self._by_age.append((now_s, value))
        insort(self._ranked, value)
        self._sum += value

    def p95(self, now_s: Seconds) -> float:
        """Nearest rank; the median of fewer than `FEW`; 0 if nothing was measured lately."""
        self._forget_before(now_s - WINDOW_S)
        count = len(self._ranked)
        share = 0.95 if count >= FEW else 0.5
        return self._ranked[math.ceil(share * count) - 1] if count else 0.0

    def mean(self, now_s: Seconds) -> float:
        """0 if nothing was measured lately."""
        self._forget_before(now_s - WINDOW_S)
        return self._sum / len(self._ranked) if self._ranked else 0.0

    def _forget_before(self, moment_s: Seconds) -> None:
        while self._by_age and self._by_age[0][0] < moment_s:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, value = self._by_age.popleft()
        del self._ranked[bisect_left(self._ranked, value)]
        # Without samples the sum is exactly zero again: rounding errors do not pile up over weeks.
        self._sum = self._sum - value if self._ranked else 0.0


class EngineTimes:
    """Learns the times of one engine. Prefills are kept by size, in powers of two: at most 16 sizes."""

    def __init__(self) -> None:
        self._prefills: dict[int, RecentTimes] = {}
        self._steps = RecentTimes()
        self._steps_s = 0.0
        self._steps_open = 0
        self._told = Times()
        self._told_at_s = float("-inf")

    def prefilled(self, ids: int, seconds: Seconds, now_s: Seconds) -> None:
        """A prefill of so many ids gave its first token after so long."""
        size = min(15, max(0, ids - 1).bit_length())
        self._prefills.setdefault(size, RecentTimes()).add(seconds, now_s)

    def stepped(self, seconds: Seconds, now_s: Seconds) -> None:
        """One token after another took so long."""
        self._steps_s += seconds
        self._steps_open += 1
        if self._steps_open == STEPS_TOGETHER:
            self._steps.add(self._steps_s / STEPS_TOGETHER, now_s)
            self._steps_s, self._steps_open = 0.0, 0

    def times(self, now_s: Seconds) -> Times:
        """Made anew after `REMAKE_S`: it is asked for several times a token, and cannot change much meanwhile."""
        if now_s - self._told_at_s >= REMAKE_S:
            self._told, self._told_at_s = self._make(now_s), now_s
        return self._told

    def _make(self, now_s: Seconds) -> Times:
        sizes = ((1 << size, self._prefills[size].p95(now_s)) for size in sorted(self._prefills))
        return Times(tuple((ids, seconds) for ids, seconds in sizes if seconds > 0), self._steps.p95(now_s))
