"""Row S3: what status, metrics and error messages show of a circuit. Pure."""

from kensho.base.clock import Seconds
from kensho.base.structs import Struct
from kensho.resilience.circuit import ADMITTING, ADVICE, Counters, HardReason, Mode, State

_COMING = frozenset({Mode.HALF_OPEN, Mode.RESTARTING})


class CircuitStatus(Struct):
    """Ages instead of times: a point on the monotonic clock means nothing elsewhere."""

    mode: Mode
    reason: str
    hard: HardReason | None
    weighted_failures: int
    """In a row; the threshold opens."""
    canaries_passed: int
    trips: int
    """OPENs in a row: each doubles the wait."""
    in_mode_s: Seconds
    leaves_in_s: Seconds | None
    """Until time alone does something ("fallback until"); None if it does not."""
    last_success_ago_s: Seconds | None
    last_failure_ago_s: Seconds | None
    baseline_ms: float
    """p95 of the pace of this engine's usual calls; 0 before anything was measured."""
    counters: Counters

    @property
    def admits(self) -> bool:
        return self.mode in ADMITTING

    @property
    def back_in_s(self) -> Seconds | None:
        """How soon it may take requests again; 0 if it does, or is being started or proven now. None: not by itself:
        HARD_OPEN only looks at the machine now and then."""
        if self.mode in ADMITTING | _COMING:
            return 0.0
        return None if self.mode is Mode.HARD_OPEN else self.leaves_in_s

    def as_fields(self) -> dict[str, object]:
        """Flat and plain, for JSON: `state`, `reason`, `advice`, ages in seconds, counters by name."""
        counters = self.counters
        return {
            "state": self.mode.value,
            "reason": self.reason,
            "advice": ADVICE[self.hard] if self.hard else "",
            "in_state_s": round(self.in_mode_s, 3),
            "fallback_for_s": None if self.leaves_in_s is None else round(self.leaves_in_s, 3),
            "failures_in_a_row": self.weighted_failures,
            "canaries_passed": self.canaries_passed,
            "trips": self.trips,
            "last_success_ago_s": _rounded(self.last_success_ago_s),
            "last_failure_ago_s": _rounded(self.last_failure_ago_s),
            "baseline_ms": round(self.baseline_ms, 3),
            "calls": counters.calls,
            "successes": counters.successes,
            "slow": counters.slow,
            "failures": counters.failures,
            "cancelled": counters.cancelled,
            "rejected": counters.rejected,
            "stale": counters.stale,
            "opened": counters.opened,
            "canaries": counters.canaries,
            "canaries_failed": counters.canaries_failed,
            "restarts": counters.restarts,
        }


def circuit_status(state: State, now_s: Seconds) -> CircuitStatus:
    counters = state.counters
    return CircuitStatus(
        mode=state.mode,
        reason=state.reason,
        hard=state.hard,
        weighted_failures=state.weight,
        canaries_passed=state.passes,
        trips=state.trips,
        in_mode_s=now_s - state.entered_s,
        leaves_in_s=None if state.until_s is None else max(0.0, state.until_s - now_s),
        last_success_ago_s=None if counters.last_success_s is None else now_s - counters.last_success_s,
        last_failure_ago_s=None if counters.last_failure_s is None else now_s - counters.last_failure_s,
        baseline_ms=state.baseline_s * 1e3,
        counters=counters,
    )


def _rounded(age_s: Seconds | None) -> Seconds | None:
    return None if age_s is None else round(age_s, 3)
