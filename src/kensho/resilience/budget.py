"""A share of all calls that may be spent on doing something twice. Pure; no clock.

    retries = Budget(share=0.2, burst=5)
    retries.earn()                  # with each call
    if retries.spend(): ...         # with each call that is made again

Source: retry budgets (Google SRE book, "Handling Overload"; Finagle's RetryBudget). Without one, an engine that fails
often gets more calls the more it fails.
"""


class Budget:
    """At most `share` of the calls over any long time, and `burst` at once; it begins full."""

    def __init__(self, *, share: float, burst: int) -> None:
        self._share = share
        self._burst = burst
        self._left = float(burst)

    def earn(self) -> None:
        """A call was made."""
        self._left = min(self._burst, self._left + self._share)

    @property
    def is_left(self) -> bool:
        """Whether `spend` would be True."""
        return self._left >= 1.0

    def spend(self) -> bool:
        """Take the price of one repetition. False: there is none, do without it."""
        if not self.is_left:
            return False
        self._left -= 1.0
        return True
