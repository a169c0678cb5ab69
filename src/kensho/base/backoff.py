"""How long to wait before trying again. Pure apart from draws from the given random source."""

from collections.abc import Callable

from kensho.base.clock import Seconds

Rng = Callable[[], float]
"""Returns a float in [0, 1), as random.Random().random does."""


def next_delay_s(previous_s: Seconds, rng: Rng, *, base_s: Seconds, cap_s: Seconds) -> Seconds:
    """Decorrelated-jitter delay after one of `previous_s` (0 before the first), in [base_s, cap_s].

    Source: Brooker, "Exponential Backoff and Jitter" (2015): min(cap, uniform(base, previous x 3)).
    """
    high = max(base_s, previous_s * 3)
    return min(cap_s, base_s + rng() * (high - base_s))
