"""Facts about circuits, queues and streams."""

from typing import ClassVar

from kensho.base.events.event import Event, Level, Service


class CircuitChanged(Event, kw_only=True):
    """A circuit went from one state to another; what is sent is one of its kinds below, so that a name alone says
    what happened. `next_step` says in words what happens next."""

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


class CircuitOpened(CircuitChanged, kw_only=True):
    name: ClassVar[str] = "circuit.opened"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "engine {engine} gets no requests: {reason}; {next_step}"


class CircuitRestarting(CircuitChanged, kw_only=True):
    name: ClassVar[str] = "circuit.restarting"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "engine {engine} is being restarted: {reason}; {next_step}"


class CircuitProbing(CircuitChanged, kw_only=True):
    name: ClassVar[str] = "circuit.probing"
    text: ClassVar[str] = "engine {engine} is being tried: {reason}; {next_step}"


class CircuitClosed(CircuitChanged, kw_only=True):
    name: ClassVar[str] = "circuit.closed"
    text: ClassVar[str] = "engine {engine} is healthy: {reason}; {next_step}"


class CircuitHardOpened(CircuitChanged, kw_only=True):
    """The engine stays off until the machine, its version or a person's mind has changed."""

    name: ClassVar[str] = "circuit.hard_opened"
    level: ClassVar[Level] = "error"
    text: ClassVar[str] = "engine {engine} is off: {reason}; {next_step}"


class CircuitForced(CircuitChanged, kw_only=True):
    name: ClassVar[str] = "circuit.forced"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "engine {engine} is {to_state}: {reason}; {next_step}"


_KINDS: dict[str, type[CircuitChanged]] = {
    "OPEN": CircuitOpened,
    "RESTARTING": CircuitRestarting,
    "HALF_OPEN": CircuitProbing,
    "CLOSED": CircuitClosed,
    "HARD_OPEN": CircuitHardOpened,
    "FORCED_OPEN": CircuitForced,
    "FORCED_CLOSED": CircuitForced,
    "METRICS_ONLY": CircuitForced,
}


def circuit_changed(
    *, engine: str, model: str, from_state: str, to_state: str, reason: str, next_step: str
) -> CircuitChanged:
    """The kind of event for this change."""
    return _KINDS[to_state](
        engine=engine, model=model, from_state=from_state, to_state=to_state, reason=reason, next_step=next_step
    )


class CircuitWouldOpen(Event, kw_only=True):
    """METRICS_ONLY: a circuit that decides would have opened now."""

    name: ClassVar[str] = "circuit.would_open"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "engine {engine} would get no requests now, if its circuit were not forced: {reason}"
    engine: str
    model: str
    reason: str


class CanaryFinished(Event, kw_only=True):
    name: ClassVar[str] = "circuit.canary.finished"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "canary on {engine}: {outcome}"
    engine: str
    model: str
    outcome: str
    failure: str = ""
    """Its kind, in a word (`resilience.failure_class`); empty: it passed, or was given up."""
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
    text: ClassVar[str] = (
        "request {request} of {model} ({priority}) refused: {reason}; come back in {retry_after_s:.1f} s"
    )
    model: str
    request: int
    """As in RequestFinished."""
    priority: str
    reason: str
    retry_after_s: float


class RequestPoisoned(Event, kw_only=True):
    """A request ended one engine process after another, and is refused from now on. Nothing of it is told."""

    name: ClassVar[str] = "resilience.request.poisoned"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "error"
    text: ClassVar[str] = "a request of {prompt_tokens} tokens ended {hosts} engine processes of {model}; it is refused"
    model: str
    prompt_tokens: int
    hosts: int


class RequestFinished(Event, kw_only=True):
    name: ClassVar[str] = "resilience.request.finished"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = (
        "request {request} of {model} {version}: {tokens} tokens by {engine} ({outcome}), first after "
        "{first_token_ms:.0f} ms"
    )
    model: str
    version: str
    request: int
    """Unique among those that were asked of the model since it was loaded: each has one RequestFinished or one
    RequestRejected. For the log, and no label of a metric, which would get a series for each request."""
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
    """How hard pressed the queue is: NORMAL, PRESSURED or SATURATED (row S5: the system says that it is overloaded).
    What is sent is one of its kinds below."""

    name: ClassVar[str] = "admission.changed"
    service: ClassVar[Service] = "resilience"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "intake of {model}: {from_level} -> {to_level}; {next_step}"
    model: str
    from_level: str
    to_level: str
    next_step: str


class AdmissionSaturated(AdmissionChanged, kw_only=True):
    name: ClassVar[str] = "admission.saturated"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "model {model}: {next_step}"


class AdmissionPressured(AdmissionChanged, kw_only=True):
    name: ClassVar[str] = "admission.pressured"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "model {model}: requests wait long; {next_step}"


class AdmissionRelaxed(AdmissionChanged, kw_only=True):
    name: ClassVar[str] = "admission.relaxed"
    text: ClassVar[str] = "model {model}: no longer {from_level}; {next_step}"


_ADMISSION: dict[str, type[AdmissionChanged]] = {"SATURATED": AdmissionSaturated, "PRESSURED": AdmissionPressured}


def admission_changed(*, model: str, from_level: str, to_level: str, next_step: str) -> AdmissionChanged:
    """The event for a change to `to_level`."""
    kind = _ADMISSION.get(to_level, AdmissionRelaxed)
    return kind(model=model, from_level=from_level, to_level=to_level, next_step=next_step)
