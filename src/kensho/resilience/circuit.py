"""The words of a circuit: its modes, settings, state, inputs and effects. `breaker.step` gives them their meaning,
`gate.py` keeps the state, `guard.py` carries the effects out.
"""

from enum import StrEnum

from kensho.base.clock import Seconds
from kensho.base.errors import ConfigError
from kensho.base.structs import Struct, field
from kensho.resilience.breaker_rates import BUCKETS, Rates
from kensho.resilience.failure_class import FailureClass


class Mode(StrEnum):
    CLOSED = "CLOSED"
    OPEN = "OPEN"
    HALF_OPEN = "HALF_OPEN"
    RESTARTING = "RESTARTING"
    HARD_OPEN = "HARD_OPEN"
    FORCED_OPEN = "FORCED_OPEN"
    FORCED_CLOSED = "FORCED_CLOSED"
    METRICS_ONLY = "METRICS_ONLY"


ADMITTING = frozenset({Mode.CLOSED, Mode.FORCED_CLOSED, Mode.METRICS_ONLY})
FORCED = frozenset({Mode.FORCED_OPEN, Mode.FORCED_CLOSED, Mode.METRICS_ONLY})


class HardReason(StrEnum):
    """Why an engine is off until something outside of it changes. The breaker's word alone."""

    DEVICE_LOST = "device_lost"
    DRIVER_MISMATCH = "driver_mismatch"
    START_LOOP = "start_loop"
    UNKILLABLE = "unkillable"
    OUTPUT_MISMATCH = "output_mismatch"


ADVICE = {
    HardReason.DEVICE_LOST: "reset or reseat the device, or reboot",
    HardReason.DRIVER_MISMATCH: "reboot: the driver was updated and its old part still runs",
    HardReason.START_LOOP: "look at the log of its starts, then give it back",
    HardReason.UNKILLABLE: "reboot: a process of it does not react to SIGKILL",
    HardReason.OUTPUT_MISMATCH: "do not trust this device: check its memory, its driver and its cooling",
}
"""What a person can do. The circuit looks by itself whether it was done."""


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
    """OPEN after a start that failed; and the shortest time between two tries of an engine that nobody can stand in
    for."""
    canary_timeout_s: Seconds = 5.0
    """Of a canary, from the moment that it has the engine for itself."""
    canary_gap_s: Seconds = 1.0
    """After a canary that was cancelled the next one begins so long after it began, or later. Guess."""
    start_timeout_s: Seconds = 120.0
    """A start that takes longer has failed. Guess: a large model from a slow disk."""
    max_failed_starts: int = 3
    failed_starts_window_s: Seconds = 600.0
    free_restarts: int = 3
    """So many crashes of requests within `failed_starts_window_s` are followed by a start at once; after each further
    one the circuit waits `restart_open_s`, doubling."""
    forget_trips_s: Seconds = 600.0
    max_mismatches: int = 3
    """Processes in a row whose canary computed something else: HARD_OPEN."""
    window_s: Seconds = 30.0
    """Over which the two rates are taken."""
    min_calls: int = 10
    """Fewer calls have no rate. Anchors with 100 never trip on a machine with one user."""
    failure_rate: float = 0.5
    slow_rate: float = 0.5
    slow_factor: float = 4.0
    """A call is slow at more than this many times the p95 of this engine's usual calls."""
    oom_window_s: Seconds = 60.0
    """A second want of memory within this time restarts the host."""
    ramp_s: Seconds = 10.0
    """After the circuit closed: a tenth of the requests prefers this engine at first, half of them from the middle."""
    check_s: Seconds = 60.0
    """First look at the machine in HARD_OPEN; doubles up to `open_cap_s`, and starts anew as `open_s` does."""

    def __post_init__(self) -> None:
        counts = (self.failure_threshold, self.success_threshold, self.max_failed_starts, self.max_mismatches)
        times = (self.open_s, self.open_cap_s, self.restart_open_s, self.canary_timeout_s, self.start_timeout_s)
        more_times = (self.window_s, self.check_s, self.canary_gap_s)
        windows = (self.failed_starts_window_s, self.forget_trips_s, self.oom_window_s, self.ramp_s)
        are_times = all(t > 0 for t in (*times, *more_times)) and all(w >= 0 for w in windows)
        are_counts = all(n >= 1 for n in (*counts, self.min_calls)) and self.free_restarts >= 0
        are_rates = 0 < self.failure_rate <= 1 and 0 < self.slow_rate <= 1 and self.slow_factor > 1
        if not (are_times and are_counts and are_rates and 0 <= self.jitter < 1):
            raise ConfigError(
                f"breaker settings cannot be used: {self}",
                advice="thresholds are at least 1, times are positive seconds, jitter is from 0 up to 1, rates above 0",
            )

    @property
    def bucket_s(self) -> Seconds:
        """The rates forget in steps of this."""
        return self.window_s / BUCKETS


class Counters(Struct):
    """What happened since the beginning (row S3)."""

    rejected: int = 0
    successes: int = 0
    slow: int = 0
    """Successes that took too long."""
    failures: int = 0
    cancelled: int = 0
    stale: int = 0
    """Results from before the last change: they change nothing else."""
    opened: int = 0
    """Times that it went from admitting requests to not admitting them."""
    canaries: int = 0
    canaries_failed: int = 0
    restarts: int = 0
    last_success_s: Seconds | None = None
    last_failure_s: Seconds | None = None
    """Of a request or a canary."""

    @property
    def calls(self) -> int:
        """Requests that were admitted, and have ended before the circuit changed."""
        return self.successes + self.failures + self.cancelled


class State(Struct):
    mode: Mode
    generation: int
    entered_s: Seconds
    reason: str
    """Why it is in this mode, in words."""
    fingerprint: str = ""
    """Boot id and versions of engine and driver when this began: what must change to end a HARD_OPEN."""
    until_s: Seconds | None = None
    """When time alone changes something: end of OPEN or of a person's word, deadline of the canary or of the start,
    next look in HARD_OPEN. None: never; of a canary or a start: it waits until whoever uses the engine is done."""
    hard: HardReason | None = None
    """HARD_OPEN: which."""
    weight: int = 0
    """CLOSED: weighted failures in a row."""
    rates: Rates = Rates()
    """CLOSED: calls of the last window."""
    last_oom_s: Seconds | None = None
    ramps: bool = False
    """CLOSED: it has just come back, and requests come to it by and by."""
    passes: int = 0
    """HALF_OPEN: canaries passed."""
    is_resting: bool = False
    """HALF_OPEN: a canary was cancelled, and the next one begins at `until_s`."""
    mismatches: int = 0
    """Processes in a row whose canary computed something else."""
    trips: int = 0
    """OPENs since it was CLOSED for long, for the doubling."""
    checks: int = 0
    """Looks at the machine in HARD_OPEN since it was CLOSED for long, for the doubling."""
    shortages: int = 0
    """Starts and canaries that the machine had no room for, since it was CLOSED, for the doubling."""
    tried_s: Seconds | None = None
    """When the last canary or start began."""
    failed_starts_s: tuple[Seconds, ...] = ()
    restarts_s: tuple[Seconds, ...] = ()
    """When requests crashed or hung the host."""
    must_restart: bool = False
    """OPEN: the host was killed or never came up."""
    baseline_s: Seconds = 0.0
    """p95 of the pace of usual calls; see `breaker_rates.tracked`."""
    baseline_calls: int = 0
    counters: Counters = field(factory=Counters)


# --- inputs ---


class Admit(Struct):
    """A request asks for the engine. Answered by the effect Admitted or Rejected."""


class Succeeded(Struct):
    generation: int
    pace_s: Seconds | None = None
    """How long one unit of the work took: of a stream, its mean time between tokens. None: not measured."""


class Failed(Struct):
    generation: int
    failure: FailureClass


class Cancelled(Struct):
    """An admitted call ended without saying anything about the engine: the client left, the request was bad."""

    generation: int


class Began(Struct):
    """The canary or the start that was asked for has the engine for itself: its time runs from now on."""

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
    failure: FailureClass = FailureClass.CRASH


class HostUnkillable(Struct):
    """The host did not end after SIGKILL: it is stuck in a driver, and is left to the kernel."""


class Resumed(Struct):
    """The machine slept. What the device remembers of that is found out by a canary."""


class Hurry(Struct):
    """No engine of the model admits anybody: do not wait longer than must be."""


class Looked(Struct):
    """Answer to LookAtMachine."""

    generation: int
    fingerprint: str
    is_device_there: bool


class Tick(Struct):
    """Time has passed. Whether a timer fired early, late or twice does not matter."""


class Force(Struct):
    """A person's word: FORCED_OPEN, FORCED_CLOSED, METRICS_ONLY, or None to give the decision back (start, canary,
    CLOSED). None changes nothing unless the mode is forced or HARD_OPEN."""

    mode: Mode | None
    for_s: Seconds | None = None
    """How long it holds; None: until the next word."""


Input = (
    Admit
    | Succeeded
    | Failed
    | Cancelled
    | Began
    | CanaryPassed
    | CanaryFailed
    | CanaryCancelled
    | HostReady
    | HostFailed
    | HostUnkillable
    | Resumed
    | Hurry
    | Looked
    | Tick
    | Force
)

# --- effects, to be carried out in order ---


class Admitted(Struct):
    """Call the engine; report the outcome with this generation, exactly once."""

    generation: int


class Rejected(Struct):
    """Not now. When to come back is in the circuit's status."""


class KillHost(Struct):
    """End the host process; a canary in flight on it is abandoned."""


class StartHost(Struct):
    """Start the host unless it is up: report Began, then HostReady or HostFailed, with this generation."""

    generation: int


class RunCanary(Struct):
    """Run the canary: report Began, then CanaryPassed, CanaryFailed or CanaryCancelled, with this generation."""

    generation: int


class LookAtMachine(Struct):
    """See whether the machine has changed, without touching the engine, and report Looked with this generation."""

    generation: int


class WouldOpen(Struct):
    """METRICS_ONLY: what a circuit that decides would have done now."""

    reason: str


class SetTimer(Struct):
    """Send a Tick at this moment; it replaces the timer before."""

    at_s: Seconds


class Changed(Struct):
    """For the event CircuitChanged: the user is told of every change (row S2)."""

    from_mode: Mode
    to_mode: Mode
    reason: str
    next_step: str


Effect = Admitted | Rejected | KillHost | StartHost | RunCanary | LookAtMachine | WouldOpen | SetTimer | Changed

Result = tuple[State, tuple[Effect, ...]]
