"""How long work will take, learnt from what was measured. No clock: moments are passed in, monotonic.

    seen = EngineTimes()
    seen.prefilled(ids=300, seconds=0.21, now_s=now_s)      # from the call to the first token
    seen.stepped(0.025, now_s)                              # from one token to the next
    seen.times(now_s).needed_s(Work(prompt_ids=250, steps=40))

Rules: (1) an estimate is a 95th percentile, because a mean starts work that ends too late (simulated at ten times the
load: 98 % against 61 % of goodput), or the median for those who are let in with an even chance; of fewer than `FEW`
samples both are the median; (2) memory is bounded: 64 times of each kind; (3) what is older than a minute does not
count; (4) what was never measured takes no time: the first requests are let in; (5) nothing is scaled from one size of
prompt to another: of a size that was not measured lately it is only known that it takes no less than a smaller one.

Whoever is refused by an estimate is not measured, so a guess would be believed for ever. By (3), (4) and (5) none is:
on an idle engine a refusal rests on what prompts of the same size or smaller ones took in the last minute, what steps
took, which are one like another, and how many of them answers with a limit of the same size had. Sizes are powers of
two: who has the time for a prompt of twice the length, and for all the steps that it may have, is not refused for
longer than that.
"""

import math
from bisect import bisect_left, insort
from collections import deque

from kensho.base.clock import Seconds
from kensho.base.structs import Struct, replace

WINDOW_S: Seconds = 60.0
SAMPLES = 64
"""Enough for a 95th percentile that three outliers do not move."""
STEPS_TOGETHER = 32
"""A time of a step is the mean of so many: one alone jitters with the machine, and what is asked about is their sum."""
REMAKE_S: Seconds = 0.01
FEW = 20
"""Of fewer samples the median is taken: their 95th percentile is their maximum, and one long prompt would refuse
everyone."""
LARGEST = 1 << 15
"""All that is longer is of one size."""
STOPPED = 1.05
"""What was stopped would have taken longer than it had: by so much, so that the next one with as much time is not let
in too. A guess, and a low one: only what was really measured may refuse those with more time."""


class Work(Struct):
    """What a request asks of an engine by its deadline."""

    prompt_ids: int = 1
    """Ids to prefill before the first token."""
    steps: int = 0
    """Steps after the first token: 0 for a stream, whose deadline is that of its first token."""
    is_guess: bool = False
    """Nobody knows whether it will have so many steps."""

    def proven(self) -> "Work":
        """Without the steps that are a guess."""
        return replace(self, steps=0, is_guess=False) if self.is_guess else self


ONE = Work()


def size_of(ids: int) -> int:
    """The size of a prompt, or of a limit: the power of two that it does not exceed."""
    return min(LARGEST, 1 << max(0, ids - 1).bit_length())


class Times(Struct):
    """What one engine takes. All zero: nothing was measured lately."""

    prefill: tuple[tuple[int, Seconds], ...] = ()
    """(size, seconds) by rising size (`size_of`): so long takes a prefill of that size, first token included."""
    step_s: Seconds = 0.0

    def needed_s(self, work: Work) -> Seconds:
        """From the start of the work to the moment that its deadline is about."""
        return self._prefill_s(size_of(work.prompt_ids)) + work.steps * self.step_s

    def _prefill_s(self, size: int) -> Seconds:
        seconds = 0.0
        for smaller, smaller_s in self.prefill:
            if smaller > size:
                break
            seconds = smaller_s
        return seconds


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
        return self._at(0.95 if len(self._ranked) >= FEW else 0.5)

    def median(self, now_s: Seconds) -> float:
        """Nearest rank, the lower of two; 0 if nothing was measured lately."""
        self._forget_before(now_s - WINDOW_S)
        return self._at(0.5)

    def mean(self, now_s: Seconds) -> float:
        """0 if nothing was measured lately."""
        self._forget_before(now_s - WINDOW_S)
        return self._sum / len(self._ranked) if self._ranked else 0.0

    def _at(self, share: float) -> float:
        count = len(self._ranked)
        return self._ranked[math.ceil(share * count) - 1] if count else 0.0

    def _forget_before(self, moment_s: Seconds) -> None:
        while self._by_age and self._by_age[0][0] < moment_s:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        _, value = self._by_age.popleft()
        del self._ranked[bisect_left(self._ranked, value)]
        # Without samples the sum is exactly zero again: rounding errors do not pile up over weeks.
        self._sum = self._sum - value if self._ranked else 0.0


class EngineTimes:
    """Learns the times of one engine. Prefills are kept by size: at most 16 sizes."""

    def __init__(self) -> None:
        self._prefills: dict[int, RecentTimes] = {}
        self._steps = RecentTimes()
        self._steps_s = 0.0
        self._steps_open = 0
        self._steps_since_s = 0.0
        self._times = self._medians = Times()
        self._made_at_s = float("-inf")

    def prefilled(self, ids: int, seconds: Seconds, now_s: Seconds) -> None:
        """A prefill of so many ids gave its first token after so long."""
        self._prefills.setdefault(size_of(ids), RecentTimes()).add(seconds, now_s)

    def stopped(self, ids: int, seconds: Seconds, now_s: Seconds) -> None:
        """A prefill of so many ids was stopped after so long, without a token. It counts if it took long already:
        else those that are stopped at their deadline would never be learnt, and the next one begun like them."""
        if seconds > self.medians(now_s).needed_s(Work(ids)):
            self.prefilled(ids, seconds * STOPPED, now_s)

    def stepped(self, seconds: Seconds, now_s: Seconds) -> None:
        """One token after another took so long."""
        if not self._steps_open or now_s - self._steps_since_s > WINDOW_S:
            self._steps_s, self._steps_open, self._steps_since_s = 0.0, 0, now_s
        self._steps_s += seconds
        self._steps_open += 1
        if self._steps_open == STEPS_TOGETHER:
            self._steps.add(self._steps_s / STEPS_TOGETHER, now_s)
            self._steps_open = 0

    def times(self, now_s: Seconds) -> Times:
        """95th percentiles."""
        self._remake(now_s)
        return self._times

    def medians(self, now_s: Seconds) -> Times:
        self._remake(now_s)
        return self._medians

    def _remake(self, now_s: Seconds) -> None:
        """After `REMAKE_S`: the times are asked for several times a token, and cannot change much meanwhile."""
        if now_s - self._made_at_s < REMAKE_S:
            return
        self._made_at_s = now_s
        sizes = sorted(self._prefills.items())
        self._times = _times([(size, seen.p95(now_s)) for size, seen in sizes], self._steps.p95(now_s))
        self._medians = _times([(size, seen.median(now_s)) for size, seen in sizes], self._steps.median(now_s))


def _times(prefill: list[tuple[int, Seconds]], step_s: Seconds) -> Times:
    return Times(tuple((size, seconds) for size, seconds in prefill if seconds > 0), step_s)


class AnswerLengths:
    """Learns how many tokens whole answers have, by the size of their limit: who asks for few at most is another sort
    of client than who leaves it to the model."""

    def __init__(self) -> None:
        self._by_limit: dict[int, RecentTimes] = {}

    def ended(self, limit: int, tokens: float, now_s: Seconds) -> None:
        """An answer that might have `limit` tokens had so many."""
        self._by_limit.setdefault(size_of(limit), RecentTimes()).add(tokens, now_s)

    def stopped(self, limit: int, tokens: int, now_s: Seconds) -> None:
        """An answer was stopped at so many. It counts if it had many already, as a prefill does."""
        if tokens > self._of(limit).median(now_s):
            self.ended(limit, tokens * STOPPED, now_s)

    def work(self, prompt_ids: int, limit: int, made: int, now_s: Seconds, *, by_median: bool) -> Work:
        """What is left of a whole answer after so many ids, which may have `limit` tokens and has `made` of them."""
        seen = self._of(limit)
        usual = int(seen.median(now_s) if by_median else seen.p95(now_s))
        return Work(prompt_ids + made, max(0, min(usual or limit, limit) - made - 1), is_guess=not usual)

    def _of(self, limit: int) -> RecentTimes:
        return self._by_limit.get(size_of(limit), _NOTHING)


_NOTHING = RecentTimes()
