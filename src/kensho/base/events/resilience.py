"""Facts about circuits, queues and streams."""

from typing import ClassVar

from kensho.base.events.event import Event, Level, Service


class CircuitChanged(Event, kw_only=True):
    """One class for all transitions; `name` stays one word and the states are fields. `next_step` says in words
    what happens next."""

    name: ClassVar[str] = "circuit.changed"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "engine {engine}: {from_state} -> {to_state} ({reason}); {next_step}"
    engine: str
    model: str
    from_state: str
    to_state: str
    reason: str
    next_step: str


class CanaryFinished(Event, kw_only=True):
    name: ClassVar[str] = "circuit.canary.finished"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "canary on {engine}: {outcome}"
    engine: str
    model: str
    outcome: str
    seconds: float


class StreamMoved(Event, kw_only=True):
    name: ClassVar[str] = "resilience.stream.moved"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = (
        "stream moved from {from_engine} to {to_engine} after {accepted} tokens ({reason}); gap {gap_ms:.0f} ms"
    )
    from_engine: str
    to_engine: str
    accepted: int
    reason: str
    gap_ms: float


class RequestRejected(Event, kw_only=True):
    name: ClassVar[str] = "resilience.queue.rejected"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{priority} request refused: {reason}; come back in {retry_after_s:.1f} s"
    priority: str
    reason: str
    retry_after_s: float


class RequestFinished(Event, kw_only=True):
    name: ClassVar[str] = "resilience.request.finished"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = (
        "{model} {version}: {tokens} tokens by {engine} ({outcome}), first after {first_token_ms:.0f} ms"
    )
    model: str
    version: str
    engine: str
    tier: str
    priority: str
    outcome: str
    tokens: int
    failovers: int
    gap_ms: float
    first_token_ms: float
    tokens_per_second: float


class AdmissionChanged(Event, kw_only=True):
    """How hard pressed the queue is: NORMAL, PRESSURED or SATURATED (row S5: the system says that it is overloaded)."""

    name: ClassVar[str] = "admission.changed"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "intake of {model}: {from_level} -> {to_level}; {next_step}"
    model: str
    from_level: str
    to_level: str
    next_step: str
