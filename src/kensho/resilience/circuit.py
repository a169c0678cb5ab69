"""The words of a circuit: its modes, settings, state, inputs and effects. `breaker.step` gives them their meaning,
`guard.py` carries the effects out.
"""

from enum import StrEnum

from kensho.base.clock import Seconds
from kensho.base.errors import ConfigError
from kensho.base.structs import Struct, field
from kensho.resilience.classify import FailureClass


class Mode(StrEnum):
    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"
    RESTARTING = "RESTARTING"
    HARD_OPEN = "HARD_OPEN"
    FORCED_OPEN = "FORCED_OPEN"
    FORCED_CLOSED = "FORCED_CLOSED"


class BreakerSettings(Struct):
    """Public settings. The first three defaults are the prototype's (rows S1, S2)."""

    failure_threshold: int = 3
    success_threshold: int = 2
    open_s: Seconds = 60.0
    """First OPEN; doubles with each one after it, up to `open_cap_s`, and starts anew after `forget_trips_s` CLOSED."""
    open_cap_s: Seconds = 900.0
    jitter: float = 0.2
    """OPEN lasts its time +- this share, so that a fleet on one broken driver does not probe in step. In [0, 1)."""
    restart_open_s: Seconds = 5.0
    """OPEN after a start that failed."""
    canary_timeout_s: Seconds = 5.0
    start_timeout_s: Seconds = 120.0
    """A start that takes longer has failed. Guess: a large model from a slow disk."""
    max_failed_starts: int = 3
    failed_starts_window_s: Seconds = 600.0
    forget_trips_s: Seconds = 600.0

    def __post_init__(self) -> None:
        counts = (self.failure_threshold, self.success_threshold, self.max_failed_starts)
        times = (self.open_s, self.open_cap_s, self.restart_open_s, self.canary_timeout_s, self.start_timeout_s)
        windows = (self.failed_starts_window_s, self.forget_trips_s)
        are_usable = all(n >= 1 for n in counts) and all(t > 0 for t in times) and all(w >= 0 for w in windows)
        if not are_usable or not 0 <= self.jitter < 1:
            raise ConfigError(
                f"breaker settings cannot be used: {self}",
                advice="thresholds are at least 1, times are positive seconds, jitter is from 0 up to 1",
            )


class Counters(Struct):
    """What happened since the beginning (row S3)."""

    admitted: int = 0
    rejected: int = 0
    successes: int = 0
    failures: int = 0
    cancelled: int = 0
    stale: int = 0
    canaries: int = 0
    restarts: int = 0
    last_success_s: Seconds | None = None
    last_failure_s: Seconds | None = None


class State(Struct):
    mode: Mode
    generation: int
    entered_s: Seconds
    reason: str
    """Why it is in this mode, in words."""
    until_s: Seconds | None = None
    """When time alone changes something: end of OPEN, deadline of the canary or of the start. None: never;
    in HALF_OPEN: no canary is in flight."""
    weight: int = 0
    """CLOSED: weighted failures in a row."""
    passes: int = 0
    """HALF_OPEN: canaries passed."""
    trips: int = 0
    """OPENs in a row, for the doubling."""
    failed_starts_s: tuple[Seconds, ...] = ()
    must_restart: bool = False
    """OPEN: the host was killed or never came up."""
    counters: Counters = field(factory=Counters)


def closed(now_s: Seconds) -> State:
    """The state of an engine that was just started and has given no reason for doubt."""
    return State(Mode.CLOSED, generation=1, entered_s=now_s, reason="started")


# --- inputs ---


class Admit(Struct):
    """A request asks for the engine. Answered by the effect Admitted or Rejected."""


class Succeeded(Struct):
    generation: int


class Failed(Struct):
    generation: int
    failure: FailureClass


class Cancelled(Struct):
    """An admitted call ended without saying anything about the engine: the client left, the request was bad."""

    generation: int


class CanaryPassed(Struct):
    generation: int


class CanaryFailed(Struct):
    generation: int
    failure: FailureClass


class CanaryCancelled(Struct):
    generation: int


class HostReady(Struct):
    generation: int


class HostFailed(Struct):
    generation: int


class Tick(Struct):
    """Time has passed. Whether a timer fired early, late or twice does not matter."""


class Force(Struct):
    """A person's word: FORCED_OPEN, FORCED_CLOSED, or None to give the decision back (start, canary, CLOSED).
    None changes nothing unless the mode is forced or HARD_OPEN."""

    mode: Mode | None


Input = (
    Admit
    | Succeeded
    | Failed
    | Cancelled
    | CanaryPassed
    | CanaryFailed
    | CanaryCancelled
    | HostReady
    | HostFailed
    | Tick
    | Force
)

# --- effects, to be carried out in order ---


class Admitted(Struct):
    """Call the engine; report the outcome with this generation, exactly once."""

    generation: int


class Rejected(Struct):
    mode: Mode
    retry_after_s: Seconds | None
    """Earliest moment at which the mode could change by itself; None if only a person can change it."""


class KillHost(Struct):
    """End the host process; a canary in flight on it is abandoned."""


class StartHost(Struct):
    """Start the host, then report HostReady or HostFailed with this generation."""

    generation: int


class RunCanary(Struct):
    """Run the canary, then report CanaryPassed, CanaryFailed or CanaryCancelled with this generation."""

    generation: int


class SetTimer(Struct):
    """Send a Tick at this moment; it replaces the timer before."""

    at_s: Seconds


class Changed(Struct):
    """For the event CircuitChanged: the user is told of every change (row S2)."""

    from_mode: Mode
    to_mode: Mode
    reason: str
    next_step: str


Effect = Admitted | Rejected | KillHost | StartHost | RunCanary | SetTimer | Changed

Result = tuple[State, tuple[Effect, ...]]
