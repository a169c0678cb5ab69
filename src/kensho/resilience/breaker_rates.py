"""How many of an engine's last calls failed or were slow, and what "usual" is. Pure.

The window is made of ten buckets, so that it forgets in steps; a call costs O(1). Consecutive failures are counted
elsewhere: these rates catch the engine that fails every other time, and the one that answers eight times too late.
"""

from kensho.base.clock import Seconds
from kensho.base.structs import Struct

BUCKETS = 10
"""As Polly v8 has it. With the default window of 30 s each is 3 s long."""

WARM_UP_CALLS = 20
"""Of fewer calls nobody knows what is usual: the p95 of 20 is their maximum."""

_UP, _DOWN = 1.0 + 0.05 * 0.95, 1.0 - 0.05 * 0.05
_LEAST_S = 1e-6

_NONE = (0,) * BUCKETS


class Rates(Struct):
    """Calls by bucket, the newest last."""

    bucket: int = 0
    """Number of the newest bucket: now divided by a bucket's length."""
    calls: tuple[int, ...] = _NONE
    failures: tuple[int, ...] = _NONE
    slow: tuple[int, ...] = _NONE

    def is_high(self, *, least: int, failure_rate: float, slow_rate: float) -> str:
        """Why these calls are reason enough to open, in words; empty if they are not. `least` calls have a rate."""
        calls = sum(self.calls)
        if calls < least:
            return ""
        if (failures := sum(self.failures)) >= failure_rate * calls:
            return f"{failures} of the last {calls} calls failed"
        if (slow := sum(self.slow)) >= slow_rate * calls:
            return f"{slow} of the last {calls} calls were slow"
        return ""


def counted(rates: Rates, bucket: int, *, calls: int = 1, failures: int = 0, slow: int = 0) -> Rates:
    """With calls that ended in `bucket`, which is never older than the newest one."""
    passed = min(BUCKETS, bucket - rates.bucket)
    empty = (0,) * passed
    by_call, by_failure, by_slow = ((*kept[passed:], *empty) for kept in (rates.calls, rates.failures, rates.slow))
    return Rates(
        bucket,
        (*by_call[:-1], by_call[-1] + calls),
        (*by_failure[:-1], by_failure[-1] + failures),
        (*by_slow[:-1], by_slow[-1] + slow),
    )


def is_slow(pace_s: Seconds, baseline_s: Seconds, baseline_calls: int, factor: float) -> bool:
    """Whether a call took more than `factor` times as long as 95 % of the usual ones."""
    return baseline_calls >= WARM_UP_CALLS and pace_s > factor * baseline_s


def tracked(pace_s: Seconds, baseline_s: Seconds, baseline_calls: int) -> Seconds:
    """The p95 of usual calls after one more: the largest of the first 20, then up by 4.75 % at a call above it and down
    by 0.25 % at one below, which rests where one call in 20 is above. Slow calls are not for this function: what is
    usual must not follow an engine into its illness. O(1), no samples kept (Ma et al., "Frugal Streaming", 2014)."""
    if baseline_calls < WARM_UP_CALLS:
        return max(baseline_s, pace_s, _LEAST_S)
    return max(_LEAST_S, baseline_s * (_UP if pace_s > baseline_s else _DOWN))
