"""Who waits, who goes next, who is refused (rows S4, S5). Pure: no task, no timer; `now_s` is passed in, monotonic.

Rules: (1) at most `bound` requests wait, and `critical_reserve` CRITICAL ones beyond that. (2) When it is full, a
newcomer takes the place of the oldest request of the lowest class below its own. (3) A request is started only if
its first token can come in time: now + estimate <= deadline, where the estimate is a p95, not a mean (simulated at 10
x overload: 98 % against 61 % of goodput). (4) The highest class goes first; every tenth start goes to the lowest
waiting class, unless a CRITICAL request waits. (5) Inside a class the oldest goes first, until it has waited too
long: then the newest, who can still be served in time (adaptive LIFO). (6) Five rejections in ten seconds are called
SATURATED: NORMAL and LOW newcomers are refused while anything waits. That is announced, and no circuit is opened.

Every method is O(1), except where a rule looks at the whole queue (at most bound + reserve requests).
"""

import math
from collections import OrderedDict, deque
from enum import IntEnum, StrEnum
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.errors import ConfigError, DeadlineMissed, Overloaded
from kensho.base.structs import Struct


class Priority(IntEnum):
    """Smaller is more important."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


def parse_priority(word: str) -> Priority:
    """`critical`, `high`, `normal` or `low`, in any case. Raises ConfigError."""
    try:
        return Priority[word.upper()]
    except KeyError:
        raise ConfigError(f"priority {word[:40]!r} is unknown", advice="use critical, high, normal or low") from None


class Level(StrEnum):
    NORMAL = "NORMAL"
    PRESSURED = "PRESSURED"
    """LOW newcomers are refused: the median waiting request has used up `pressured_share` of the time it may wait."""
    SATURATED = "SATURATED"


Reason = Literal["full", "evicted", "deadline", "pressured", "saturated"]


class AdmissionSettings(Struct):
    bound: int = 100
    """The prototype's number (row S4)."""
    critical_reserve: int = 10
    low_turn: int = 10
    """Every how-manieth start goes to the lowest waiting class."""
    lifo_after_s: Seconds = 0.1
    saturated_rejections: int = 5
    """The prototype's number (row S5), within `saturated_window_s`."""
    saturated_window_s: Seconds = 10.0
    pressured_share: float = 0.2
    pressured_after_s: Seconds = 1.0
    deadlines_s: tuple[Seconds, Seconds, Seconds, Seconds] = (10.0, 10.0, 30.0, 120.0)
    """By class: how long the first token may take when the request does not say."""

    def __post_init__(self) -> None:
        counts = (self.bound, self.low_turn, self.saturated_rejections)
        times = (self.lifo_after_s, self.saturated_window_s, self.pressured_after_s, *self.deadlines_s)
        are_usable = all(n >= 1 for n in counts) and all(t > 0 for t in times)
        if not are_usable or self.critical_reserve < 0 or not 0 < self.pressured_share <= 1:
            raise ConfigError(
                f"admission settings cannot be used: {self}",
                advice="counts are at least 1, times are positive seconds, shares are between 0 and 1",
            )


class Estimate(Struct):
    """What the near future looks like, measured by the caller. All zero before anything was measured."""

    first_token_s: Seconds = 0.0
    """p95 from the start of a request to its first token."""
    service_s: Seconds = 0.0
    """Mean time that a request keeps its slot."""
    slots: int = 1


class Ticket(Struct):
    """One waiting request. `number` is unique in its queue."""

    number: int
    priority: Priority
    arrived_s: Seconds
    deadline_s: Seconds
    """Point on the monotonic clock by which the first token must be there."""


class Refused(Struct):
    ticket: Ticket
    reason: Reason
    retry_after_s: Seconds

    def error(self) -> Overloaded:
        """The refusal in words for whoever asked (row S4: rejection is explained)."""
        why, advice = _WORDS[self.reason]
        kind = DeadlineMissed if self.reason == "deadline" else Overloaded
        return kind(
            f"{self.ticket.priority.name.lower()} request refused: {why}",
            advice=f"{advice} in {self.retry_after_s:.1f} s",
            reason=self.reason,
            retry_after_s=self.retry_after_s,
        )


_WORDS: dict[Reason, tuple[str, str]] = {
    "full": ("too many requests are waiting", "come back"),
    "evicted": ("a more important request needed its place", "come back"),
    "deadline": ("it could not be answered by its deadline", "allow more time, or come back"),
    "pressured": ("requests wait too long, and low ones are paused", "come back"),
    "saturated": ("overloaded, pausing unimportant work", "come back"),
}

_UNMEASURED_SERVICE_S = 1.0  # guess, for the retry-after of the very first refusals


class AdmissionQueue:
    """The waiting requests. Its owner starts what `take` returns and tells every refused ticket why."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        self._classes: dict[Priority, OrderedDict[int, Ticket]] = {p: OrderedDict() for p in Priority}
        self._waiting = 0
        self._next_number = 0
        self._starts_since_low = 0
        self._rejected_at_s: deque[Seconds] = deque(maxlen=settings.saturated_rejections)
        self._slow_since_s: Seconds | None = None

    def __len__(self) -> int:
        return self._waiting

    def depths(self) -> dict[Priority, int]:
        return {priority: len(waiting) for priority, waiting in self._classes.items()}

    def offer(
        self, priority: Priority, deadline_s: Seconds | None, now_s: Seconds, estimate: Estimate
    ) -> tuple[Ticket, list[Refused]]:
        """A newcomer. It waits now, unless it is itself among the refused; others may have lost their place to it.

        `deadline_s` is a monotonic moment; None: the default of its class.
        """
        if deadline_s is None:
            deadline_s = now_s + self._settings.deadlines_s[priority]
        ticket = Ticket(self._next_number, priority, now_s, deadline_s)
        self._next_number += 1
        if not _is_in_time(ticket, now_s, estimate):
            return ticket, [self._refuse(ticket, "deadline", estimate)]
        level = self.level(now_s, estimate)
        if self._waiting and level is Level.SATURATED and priority >= Priority.NORMAL:
            return ticket, [self._refuse(ticket, "saturated", estimate)]
        if self._waiting and level is Level.PRESSURED and priority is Priority.LOW:
            return ticket, [self._refuse(ticket, "pressured", estimate)]
        refused = self._make_room(ticket, now_s, estimate)
        if not any(one.ticket is ticket for one in refused):
            self._classes[priority][ticket.number] = ticket
            self._waiting += 1
        return ticket, refused

    def take(self, now_s: Seconds, estimate: Estimate) -> tuple[Ticket | None, list[Refused]]:
        """The request to start now (None: nobody waits), and those found to be too late on the way."""
        refused = []
        while self._waiting:
            priority = self._next_class()
            ticket = self._next_in(self._classes[priority], now_s)
            self._remove(ticket)
            if not _is_in_time(ticket, now_s, estimate):
                refused.append(self._reject(ticket, "deadline", now_s, estimate))
                continue
            is_lowest = self._lowest_waiting_or(priority) <= priority
            self._starts_since_low = 0 if is_lowest else self._starts_since_low + 1
            return ticket, refused
        return None, refused

    def cancel(self, ticket: Ticket) -> bool:
        """Forget a waiting request in O(1). False if it does not wait (any more)."""
        if ticket.number not in self._classes[ticket.priority]:
            return False
        self._remove(ticket)
        return True

    def expire(self, ticket: Ticket, now_s: Seconds, estimate: Estimate) -> Refused | None:
        """Refuse a waiting request whose deadline has come; None if it does not wait (any more)."""
        return self._reject(ticket, "deadline", now_s, estimate) if self.cancel(ticket) else None

    def level(self, now_s: Seconds, estimate: Estimate) -> Level:
        """How hard pressed the queue is. SATURATED ends when the last five rejections span more than the window."""
        settings = self._settings
        is_full_window = len(self._rejected_at_s) == settings.saturated_rejections
        if is_full_window and now_s - self._rejected_at_s[0] < settings.saturated_window_s:
            return Level.SATURATED
        if not self._is_slow(now_s, estimate):
            self._slow_since_s = None
            return Level.NORMAL
        if self._slow_since_s is None:
            self._slow_since_s = now_s
        return Level.PRESSURED if now_s - self._slow_since_s >= settings.pressured_after_s else Level.NORMAL

    def _make_room(self, newcomer: Ticket, now_s: Seconds, estimate: Estimate) -> list[Refused]:
        reserve = self._settings.critical_reserve if newcomer.priority is Priority.CRITICAL else 0
        bound = self._settings.bound + reserve
        if self._waiting < bound:
            return []
        hopeless = [
            t for waiting in self._classes.values() for t in waiting.values() if not _is_in_time(t, now_s, estimate)
        ]
        for ticket in hopeless:
            self._remove(ticket)
        refused = [self._reject(ticket, "deadline", now_s, estimate) for ticket in hopeless]
        if self._waiting < bound:
            return refused
        lowest = self._lowest_waiting_or(newcomer.priority)
        if lowest <= newcomer.priority:
            return [*refused, self._reject(newcomer, "full", now_s, estimate)]
        oldest = next(iter(self._classes[lowest].values()))
        self._remove(oldest)
        return [*refused, self._reject(oldest, "evicted", now_s, estimate)]

    def _next_class(self) -> Priority:
        is_low_turn = self._starts_since_low >= self._settings.low_turn - 1
        if is_low_turn and not self._classes[Priority.CRITICAL]:
            return self._lowest_waiting_or(Priority.CRITICAL)
        return next(p for p in Priority if self._classes[p])

    def _next_in(self, waiting: OrderedDict[int, Ticket], now_s: Seconds) -> Ticket:
        oldest = next(iter(waiting.values()))
        if now_s - oldest.arrived_s > self._settings.lifo_after_s:
            return next(reversed(waiting.values()))
        return oldest

    def _lowest_waiting_or(self, default: Priority) -> Priority:
        return next((p for p in reversed(Priority) if self._classes[p]), default)

    def _remove(self, ticket: Ticket) -> None:
        del self._classes[ticket.priority][ticket.number]
        self._waiting -= 1

    def _reject(self, ticket: Ticket, reason: Reason, now_s: Seconds, estimate: Estimate) -> Refused:
        """A rejection for want of capacity: counts towards SATURATED."""
        self._rejected_at_s.append(now_s)
        return self._refuse(ticket, reason, estimate)

    def _refuse(self, ticket: Ticket, reason: Reason, estimate: Estimate) -> Refused:
        ahead = sum(len(self._classes[p]) for p in Priority if p <= ticket.priority)
        service_s = estimate.service_s or _UNMEASURED_SERVICE_S
        return Refused(ticket, reason, (ahead + 1) * service_s / max(1, estimate.slots))

    def _is_slow(self, now_s: Seconds, estimate: Estimate) -> bool:
        shares = sorted(
            (now_s - t.arrived_s) / max(1e-3, t.deadline_s - t.arrived_s - estimate.first_token_s)
            for waiting in self._classes.values()
            for t in waiting.values()
        )
        return bool(shares) and shares[len(shares) // 2] > self._settings.pressured_share


class ServiceTimes:
    """Recent measured times, for an `Estimate`: at most 64 (enough for a p95), and none older than `window_s`.

    The window matters: one slow answer must not make an estimate that refuses every later request for ever.
    """

    def __init__(self, *, window_s: Seconds = 60.0) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[Seconds, Seconds]] = deque(maxlen=64)

    def add(self, seconds: Seconds, now_s: Seconds) -> None:
        self._samples.append((now_s, seconds))

    def p95_s(self, now_s: Seconds) -> Seconds:
        """Nearest-rank 95th percentile; 0 if nothing was measured lately. Of fewer than 20 samples the median: their
        p95 is their maximum, and one long prompt would refuse everyone."""
        ranked = sorted(self._recent(now_s))
        share = 0.95 if len(ranked) >= 20 else 0.5
        return ranked[math.ceil(share * len(ranked)) - 1] if ranked else 0.0

    def mean_s(self, now_s: Seconds) -> Seconds:
        """0 if nothing was measured lately."""
        recent = self._recent(now_s)
        return sum(recent) / len(recent) if recent else 0.0

    def _recent(self, now_s: Seconds) -> list[Seconds]:
        return [seconds for at_s, seconds in self._samples if now_s - at_s <= self._window_s]


def _is_in_time(ticket: Ticket, now_s: Seconds, estimate: Estimate) -> bool:
    return now_s + estimate.first_token_s <= ticket.deadline_s
