"""How long an engine may be silent in a user's stream before it is taken for hung. Pure.

A fixed 5 s is far too long for an engine that makes a token every 5 ms, and too short for one that needs 3 s. So the
budget is 20 times the p99 of this engine's own gaps, within bounds: simulated for a hang of 300 s, budgets of half a
second and of a whole one made no request late, and one of 5 s made hundreds late. Before 50 gaps (or 20 first tokens)
were seen the upper bound holds.
"""

from kensho.base.clock import Seconds

FACTOR = 20.0
LEAST_S: Seconds = 1.0
"""No engine is killed for less: weights that are mapped may have to be read from a slow disk again, and a process may
not run for a while on a busy machine. Half a second would find a hang sooner, and more often one that is none."""
WARM_UP_GAPS, WARM_UP_FIRSTS = 50, 20
_UP, _DOWN = 1.0 + 0.05 * 0.99, 1.0 - 0.05 * 0.01
_PROMPT_BASE_IDS = 16
"""What a prefill costs beside its ids, in ids: a guess, so that short prompts do not look slow."""


class Quantile:
    """The p99 of a stream of numbers without keeping any: one draw up for 99 down, which rests at the p99. During the
    warm-up it is the maximum. (Ma et al., "Frugal Streaming for Estimating Quantiles", 2014.) 0.1 us a number."""

    __slots__ = ("_warm_up", "seen", "value")

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self.value = 0.0
        self.seen = 0

    @property
    def is_known(self) -> bool:
        return self.seen >= self._warm_up

    def add(self, number: float) -> None:
        self.seen += 1
        if self.seen <= self._warm_up:
            self.value = max(self.value, number)
        else:
            self.value *= _UP if number > self.value else _DOWN


class SilenceBudget:
    """What one engine's streams have shown so far. Times are those that the engine took, not its readers."""

    __slots__ = ("_first", "_gaps")

    def __init__(self) -> None:
        self._gaps = Quantile(WARM_UP_GAPS)
        self._first = Quantile(WARM_UP_FIRSTS)

    def gap(self, seconds: Seconds) -> None:
        """One token after another took so long."""
        self._gaps.add(seconds)

    def first(self, seconds: Seconds, prompt_ids: int) -> None:
        """The first token after a prefill of so many ids took so long."""
        self._first.add(seconds / (prompt_ids + _PROMPT_BASE_IDS))

    def token_s(self, most_s: Seconds) -> Seconds:
        """The longest silence between two tokens, at most `most_s`."""
        return min(most_s, max(LEAST_S, FACTOR * self._gaps.value)) if self._gaps.is_known else most_s

    def first_token_s(self, prompt_ids: int, most_s: Seconds) -> Seconds:
        """The longest silence before the first token, at most `most_s`, and no less than as many steps: an engine that
        still holds the beginning of most prompts looks quick, until one comes that it must compute (no prefill is
        dearer than its ids one by one)."""
        if not self._first.is_known:
            return most_s
        expected_s = FACTOR * (prompt_ids + _PROMPT_BASE_IDS) * self._first.value
        return min(most_s, max(LEAST_S, expected_s, prompt_ids * self._gaps.value))
