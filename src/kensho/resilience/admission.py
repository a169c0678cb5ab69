"""Who waits, who goes next, who is refused (rows S4, S5). Pure: no task, no timer; `now_s` is passed in, monotonic.

Rules: (1) At most `bound` requests wait, and `critical_reserve` CRITICAL ones beyond that; the bound follows the
measured service time (`AdmissionSettings.bound_for`). Nobody is refused for whom an engine is idle that can do it in
time. (2) When it is full, a newcomer takes the place of the oldest request of the lowest class below its own. (3) A
request is started only if it can be in time: now + needed <= deadline, where what it needs is a p95, not a mean, and
for CRITICAL the median; if not, it is refused at once. (4) The highest class goes first; every tenth start goes to the
lowest waiting class, unless a CRITICAL request waits: LOW starts after at most `low_turn` others for each LOW request
before it. (5) Inside a class the oldest goes first, unless it has a crowd behind it that will not have drained within
half of the time that it has left: then the newest, who can still be served in time (adaptive LIFO). (6) Five rejections
in ten seconds are called SATURATED: NORMAL and LOW newcomers are refused if the queue will not have drained within half
of the time that they may wait. That is announced, and no circuit is opened. Every refusal counts but those of this
rule, whose retries would prolong it, and those at the door of whoever allows less time than its class has by default.
(7) A request that was begun and had to stop (`resume`) goes before the others of its class, and is never evicted.

Every method is O(1), except where a rule looks at the whole queue (at most `bound_most` + reserve requests): when it is
full, and for the level, ten times a second; and `take` of an engine that is too slow for those who would go next, who
are left to the others: it looks at `LOOKED_AT` of each class.
"""

from collections import OrderedDict
from collections.abc import Iterator
from enum import IntEnum
from itertools import islice
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.errors import ConfigError, DeadlineMissed, Overloaded
from kensho.base.structs import Struct, replace
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import ONE, Times, Work
from kensho.resilience.pressure import Level, Pressure


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


Reason = Literal["full", "evicted", "deadline", "pressured", "saturated"]


class Candidate(Struct):
    """An engine that takes requests now, and what it takes for them."""

    engine: str
    times: Times
    """95th percentiles."""
    medians: Times

    def needed_s(self, ticket: "Ticket") -> Seconds:
        """By the median for a CRITICAL request: with an even chance it is worth trying. By the p95 for the others."""
        times = self.medians if ticket.priority is Priority.CRITICAL else self.times
        return times.needed_s(ticket.work)


class Estimate(Struct):
    """What the near future looks like, measured by the caller. Zero: not measured."""

    candidates: tuple[Candidate, ...] = ()
    service_s: Seconds = 0.0
    """Mean time that a request keeps its slot."""
    service_p95_s: Seconds = 0.0
    slots: int = 1
    idle: tuple[str, ...] = ()
    """Those candidates that nobody uses now."""

    def needed_s(self, ticket: "Ticket", engine: str | None = None) -> Seconds:
        """From its start, on `engine`, or (None) on the quickest that it may use."""
        only = engine or ticket.engine
        needed = [one.needed_s(ticket) for one in self.candidates if only in {None, one.engine}]
        return min(needed, default=0.0)

    def holds_s(self, ticket: "Ticket", engine: str) -> Seconds:
        """How long it will keep `engine`, by the p95 whoever it is: a stream as long as others do, since its deadline
        is that of its first token, and nobody knows its last one."""
        known = [one.times.needed_s(ticket.work) for one in self.candidates if one.engine == engine]
        return max(known, default=0.0) if ticket.work.steps else max(self.service_p95_s, *known, 0.0)


class Ticket(Struct):
    """One waiting request. `number` is unique in its queue; a request that waits again has another one."""

    number: int
    priority: Priority
    arrived_s: Seconds
    deadline_s: Seconds
    """Point on the monotonic clock by which the work must be done; infinite once a reader has seen tokens of it."""
    work: Work = ONE
    engine: str | None = None
    """The only engine that may do it; None: any."""
    avoids: str = ""
    """The engine that it comes from, which gets it again only when there is no other."""
    request: int = 0
    """Whose ticket it is; for the owner of the queue."""

    def may_use(self, engine: str, *, has_others: bool) -> bool:
        if self.engine is not None:
            return self.engine == engine  # also if it comes from there: it may go nowhere else
        return not (has_others and self.avoids == engine)


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
LOOKED_AT = 8
"""Guess. Those of a class are much alike: where eight in a row are too much for an engine, so are most of the others.
And an engine that finds nothing must not look at four hundred at each step of the other one."""
_PATIENCE = 0.5  # share of its time; refusing whoever waits at all costs a tenth of the goodput of bursts (simulated)

_Line = OrderedDict[int, Ticket]


class AdmissionQueue:
    """The waiting requests. Its owner starts what `take` returns and tells every refused ticket why."""

    def __init__(self, settings: AdmissionSettings) -> None:
        self._settings = settings
        # By class three lines, which go in this order: who lost its engine, who gave it back by itself, who is new.
        self._urgent: dict[Priority, _Line] = {p: OrderedDict() for p in Priority}
        self._resumed: dict[Priority, _Line] = {p: OrderedDict() for p in Priority}
        self._fresh: dict[Priority, _Line] = {p: OrderedDict() for p in Priority}
        self._fresh_count = 0
        self._named_count = 0
        self._next_number = 0
        self._starts_since_low = 0
        self._pressure = Pressure(
            rejections=settings.saturated_rejections,
            window_s=settings.saturated_window_s,
            share=settings.pressured_share,
            after_s=settings.pressured_after_s,
        )

    def __len__(self) -> int:
        return sum(self.depths().values())

    def depths(self) -> dict[Priority, int]:
        return {p: sum(len(line) for line in self._lines(p)) for p in Priority}

    def offer(
        self,
        priority: Priority,
        deadline_s: Seconds | None,
        now_s: Seconds,
        estimate: Estimate,
        *,
        work: Work = ONE,
        engine: str | None = None,
        request: int = 0,
    ) -> tuple[Ticket, list[Refused]]:
        """A newcomer. It waits now, unless it is itself among the refused; others may have lost their place to it.

        `deadline_s` is a monotonic moment; None: the default of its class. `engine`: the only one that may serve it.
        """
        if deadline_s is None:
            deadline_s = now_s + self._settings.deadlines_s[priority]
        ticket = Ticket(self._next_number, priority, now_s, deadline_s, work, engine, request=request)
        self._next_number += 1
        if not _is_in_time(ticket, now_s, estimate):
            ticket = replace(ticket, work=work.proven())  # nobody is refused by a guess
        if not _is_in_time(ticket, now_s, estimate):
            if deadline_s - now_s >= self._settings.deadlines_s[priority]:
                self._pressure.rejected(now_s)  # who allows less, may ask for more than an engine at rest can do
            return ticket, [self._refuse(ticket, "deadline", estimate)]
        self.look(now_s, estimate)
        refused = [] if self._may_begin(ticket, now_s, estimate) else self._find_place(ticket, now_s, estimate)
        if not any(one.ticket is ticket for one in refused):
            self._fresh[priority][ticket.number] = ticket
            self._fresh_count += 1
            self._named_count += engine is not None
        return ticket, refused

    def resume(
        self,
        ticket: Ticket,
        deadline_s: Seconds,
        work: Work,
        now_s: Seconds,
        *,
        avoids: str = "",
        is_urgent: bool = False,
    ) -> Ticket:
        """A request that was taken, and had to stop before it was done, waits again; returns its new ticket.

        `is_urgent`: it lost its engine, or gave it up for a more important one. Else it stopped for its own reasons.
        """
        number, work = self._next_number, work.proven()
        again = replace(ticket, number=number, arrived_s=now_s, deadline_s=deadline_s, work=work, avoids=avoids)
        self._next_number += 1
        line = self._urgent if is_urgent else self._resumed
        line[ticket.priority][again.number] = again
        self._named_count += again.engine is not None
        return again

    def take(
        self, now_s: Seconds, estimate: Estimate, engine: str | None = None
    ) -> tuple[Ticket | None, list[Refused]]:
        """The request that the free `engine` should start now (None: nobody waits for it), and those found to be too
        late on the way. Without `engine`: whoever goes first."""
        refused: list[Refused] = []
        while (ticket := self._next(now_s, estimate, engine)) is not None:
            self._remove(ticket)
            if _is_in_time(ticket, now_s, estimate):
                is_lowest = self._lowest_or(ticket.priority) <= ticket.priority
                self._starts_since_low = 0 if is_lowest else self._starts_since_low + 1
                return ticket, refused
            refused.append(self._reject(ticket, "deadline", now_s, estimate))
        return None, refused

    def take_stranded(self, estimate: Estimate) -> Ticket | None:
        """A request that waits for an engine which takes none now; its owner tells it so."""
        if not self._named_count:
            return None
        engines = {one.engine for one in estimate.candidates}
        lines = (line for priority in Priority for line in self._lines(priority))
        stranded = (t for line in lines for t in line.values() if t.engine is not None and t.engine not in engines)
        ticket = next(stranded, None)
        if ticket is not None:
            self._remove(ticket)
        return ticket

    def urgent(self) -> Iterator[Ticket]:
        """Those for whom others are interrupted, in the order in which they go: CRITICAL ones, and all but LOW that
        lost their engine or gave it up, unless somebody would go before them for whom nobody is interrupted."""
        for line in self._lines(Priority.CRITICAL):
            yield from line.values()
        yield from self._urgent[Priority.HIGH].values()
        if not self._resumed[Priority.HIGH] and not self._fresh[Priority.HIGH]:
            yield from self._urgent[Priority.NORMAL].values()

    def cancel(self, ticket: Ticket) -> bool:
        """Forget a waiting request in O(1). False if it does not wait (any more)."""
        return self._remove(ticket)

    def expire(self, ticket: Ticket, now_s: Seconds, estimate: Estimate) -> Refused | None:
        """Refuse a waiting request that can no longer be in time; None if it does not wait (any more)."""
        return self._reject(ticket, "deadline", now_s, estimate) if self._remove(ticket) else None

    def look(self, now_s: Seconds, estimate: Estimate) -> None:
        """See how long those wait who wait now; `level` is as of the last look. Call it whenever something happens:
        it looks ten times a second at most."""
        self._pressure.look(now_s, lambda: (_used(ticket, now_s, estimate) for ticket in self._waiting_fresh()))

    def level(self, now_s: Seconds) -> Level:
        """How hard pressed the queue is."""
        return self._pressure.level(now_s)

    def _may_begin(self, newcomer: Ticket, now_s: Seconds, estimate: Estimate) -> bool:
        """An engine is idle because those who wait cannot use it: whoever else can does not wait, however many do."""
        return any(
            newcomer.engine in {None, engine} and now_s + estimate.needed_s(newcomer, engine) <= newcomer.deadline_s
            for engine in estimate.idle
        )

    def _find_place(self, newcomer: Ticket, now_s: Seconds, estimate: Estimate) -> list[Refused]:
        """Those who are refused for it, or it alone."""
        level, priority = self.level(now_s), newcomer.priority
        is_shed = level is Level.SATURATED and priority >= Priority.NORMAL
        is_paused = is_shed or (level is Level.PRESSURED and priority is Priority.LOW)
        if is_paused and self._waits_long(newcomer, now_s, estimate):
            return [self._refuse(newcomer, "saturated" if is_shed else "pressured", estimate)]
        return self._make_room(newcomer, now_s, estimate)

    def _make_room(self, newcomer: Ticket, now_s: Seconds, estimate: Estimate) -> list[Refused]:
        reserve = self._settings.critical_reserve if newcomer.priority is Priority.CRITICAL else 0
        bound = self._settings.bound_for(estimate.service_p95_s, estimate.slots) + reserve
        if self._fresh_count < bound:
            return []
        hopeless = [ticket for ticket in self._waiting_fresh() if not _is_in_time(ticket, now_s, estimate)]
        for ticket in hopeless:
            self._remove(ticket)
        refused = [self._reject(ticket, "deadline", now_s, estimate) for ticket in hopeless]
        if self._fresh_count < bound:
            return refused
        lowest = next((p for p in reversed(Priority) if self._fresh[p]), newcomer.priority)
        if lowest <= newcomer.priority:
            return [*refused, self._reject(newcomer, "full", now_s, estimate)]
        oldest = next(iter(self._fresh[lowest].values()))
        self._remove(oldest)
        return [*refused, self._reject(oldest, "evicted", now_s, estimate)]

    def _next(self, now_s: Seconds, estimate: Estimate, engine: str | None) -> Ticket | None:
        """Who goes next on this engine, or is found to be too late. Those who would be too late only here are left to
        the other engines."""
        for priority in self._order():
            for ticket in islice(self._line(priority, now_s, estimate, engine), LOOKED_AT):
                is_late_anywhere = not _is_in_time(ticket, now_s, estimate)
                if is_late_anywhere or now_s + estimate.needed_s(ticket, engine) <= ticket.deadline_s:
                    return ticket
        return None

    def _order(self) -> list[Priority]:
        classes = list(Priority)
        if self._starts_since_low >= self._settings.low_turn - 1 and not self._waits(Priority.CRITICAL):
            classes.insert(0, self._lowest_or(Priority.LOW))
        return classes

    def _line(self, priority: Priority, now_s: Seconds, estimate: Estimate, engine: str | None) -> Iterator[Ticket]:
        """Those of a class who may use the engine, in the order in which they go."""
        urgent, resumed, fresh = (line.values() for line in self._lines(priority))
        is_crowd = len(fresh) > self._settings.lifo_per_slot * max(1, estimate.slots)
        is_lifo = is_crowd and self._waits_long(next(iter(fresh)), now_s, estimate)
        for line in (urgent, resumed, reversed(fresh) if is_lifo else fresh):
            for ticket in line:
                if engine is None or ticket.may_use(engine, has_others=len(estimate.candidates) > 1):
                    yield ticket

    def _lowest_or(self, default: Priority) -> Priority:
        return next((p for p in reversed(Priority) if self._waits(p)), default)

    def _waits(self, priority: Priority) -> bool:
        return any(self._lines(priority))

    def _lines(self, priority: Priority) -> tuple[_Line, _Line, _Line]:
        return self._urgent[priority], self._resumed[priority], self._fresh[priority]

    def _waiting_fresh(self) -> Iterator[Ticket]:
        return (ticket for line in self._fresh.values() for ticket in line.values())

    def _remove(self, ticket: Ticket) -> bool:
        line = next((line for line in self._lines(ticket.priority) if ticket.number in line), None)
        if line is None:
            return False
        del line[ticket.number]
        self._fresh_count -= line is self._fresh[ticket.priority]
        self._named_count -= ticket.engine is not None
        return True

    def _reject(self, ticket: Ticket, reason: Reason, now_s: Seconds, estimate: Estimate) -> Refused:
        """A rejection for want of capacity: counts towards SATURATED."""
        self._pressure.rejected(now_s)
        return self._refuse(ticket, reason, estimate)

    def _refuse(self, ticket: Ticket, reason: Reason, estimate: Estimate) -> Refused:
        return Refused(ticket, reason, self._drain_s(ticket, estimate))

    def _drain_s(self, ticket: Ticket, estimate: Estimate) -> Seconds:
        """When those who go first will have gone, and one more, as far as can be predicted."""
        depths = self.depths()
        ahead = sum(depths[p] for p in Priority if p <= ticket.priority)
        service_s = estimate.service_s or _UNMEASURED_SERVICE_S
        return (ahead + 1) * service_s / max(1, estimate.slots)

    def _waits_long(self, ticket: Ticket, now_s: Seconds, estimate: Estimate) -> bool:
        if not len(self):
            return False
        left_s = ticket.deadline_s - now_s - estimate.needed_s(ticket)
        return self._drain_s(ticket, estimate) > _PATIENCE * left_s


def _is_in_time(ticket: Ticket, now_s: Seconds, estimate: Estimate) -> bool:
    return now_s + estimate.needed_s(ticket) <= ticket.deadline_s


def _used(ticket: Ticket, now_s: Seconds, estimate: Estimate) -> float:
    """Share of the time that it may wait."""
    allowed_s = ticket.deadline_s - ticket.arrived_s - estimate.needed_s(ticket)
    return (now_s - ticket.arrived_s) / max(1e-3, allowed_s)
