"""The numbers of admission, and where each of them comes from."""

from kensho.base.clock import Seconds
from kensho.base.errors import ConfigError
from kensho.base.structs import Struct


class AdmissionSettings(Struct):
    bound: int = 100
    """The prototype's number (row S4), until service times are known; then between the next two."""
    bound_least: int = 16
    bound_most: int = 400
    bound_budget_s: Seconds = 10.0
    """How much work may wait: the shortest of the default deadlines."""
    critical_reserve: int = 10
    low_turn: int = 10
    """Every how-manieth start goes to the lowest waiting class."""
    lifo_per_slot: int = 5
    """How many of a class must wait for each slot: without a crowd the newest first would only make some waits longer
    (simulated, heavy tails at 10 x: CRITICAL served 98.6 % without this rule, 99.5 % with it)."""
    saturated_rejections: int = 5
    """The prototype's number (row S5), within `saturated_window_s`."""
    saturated_window_s: Seconds = 10.0
    pressured_share: float = 0.2
    pressured_after_s: Seconds = 1.0
    deadlines_s: tuple[Seconds, Seconds, Seconds, Seconds] = (10.0, 10.0, 30.0, 120.0)
    """By class: how long a request may take when it does not say (a stream: to its first token)."""

    def __post_init__(self) -> None:
        counts = (self.bound_least, self.low_turn, self.saturated_rejections)
        times = (
            self.bound_budget_s,
            self.saturated_window_s,
            self.pressured_after_s,
            *self.deadlines_s,
        )
        are_usable = all(n >= 1 for n in counts) and all(t > 0 for t in times)
        is_ordered = self.bound_least <= self.bound <= self.bound_most
        is_positive = self.critical_reserve >= 0 and self.lifo_per_slot >= 0
        if not are_usable or not is_ordered or not is_positive or not 0 < self.pressured_share <= 1:
            raise ConfigError(
                f"admission settings cannot be used: {self}",
                advice="counts are at least 1, times are positive seconds, shares are between 0 and 1, "
                "and bound_least <= bound <= bound_most",
            )

    def bound_for(self, service_p95_s: Seconds, slots: int) -> int:
        """How many may wait: as many as can be served within the budget, each taking its p95, between least and most;
        `bound` while nothing is known (0)."""
        if service_p95_s <= 0:
            return self.bound
        return int(min(max(self.bound_budget_s * max(1, slots) / service_p95_s, self.bound_least), self.bound_most))
