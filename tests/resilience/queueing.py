"""Queues and estimates for the tests of admission."""

from typing import Any

from kensho.resilience.admission import AdmissionQueue, Candidate, Estimate, Priority, Ticket
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import Times

NOTHING_KNOWN = Estimate()
CRITICAL, HIGH, NORMAL, LOW = Priority


def needs(seconds: float, **more: Any) -> Estimate:
    """One engine, which takes so long for anything."""
    return Estimate((takes("primary", seconds),), **more)


def takes(engine: str, seconds: float) -> Candidate:
    """Always so long."""
    return Candidate(engine, Times(((1, seconds),)), Times(((1, seconds),)))


def queue(*, bound: int = 100, **changes: Any) -> AdmissionQueue:
    """Of fixed size, and without the rule that the newest goes first only where a crowd waits."""
    changes = {"bound_least": bound, "bound_most": bound, "lifo_per_slot": 0} | changes
    return AdmissionQueue(AdmissionSettings(bound=bound, **changes))


def fill(waiting: AdmissionQueue, priority: Priority, times: int, now: float = 0.0) -> list[Ticket]:
    tickets = []
    for _ in range(times):
        ticket, refused = waiting.offer(priority, now + 1000.0, now, NOTHING_KNOWN)
        assert not refused
        tickets.append(ticket)
    return tickets
