"""What a circuit takes along over a restart of the program, and how it goes on from there. Pure.

Rule: an engine that was doubted when the program ended is proven before it gets requests: it is started, and a canary
runs. HARD_OPEN stays while the machine (boot id) and the versions of engine and driver are the same ones. A person's
word stays, unless it was given for a time.
"""

from collections.abc import Mapping

from kensho.base.clock import Seconds
from kensho.base.structs import Struct
from kensho.resilience.breaker import closed
from kensho.resilience.circuit import FORCED, HardReason, Mode, State

_MAX_TRIPS = 30
_MAX_REASON = 300
_ENDED = "when the program ended"


class SavedCircuit(Struct):
    """Plain enough for a line of JSON: see `as_json` and `from_json`."""

    mode: Mode
    trips: int
    reason: str
    fingerprint: str
    """Of the machine and engine as the circuit knew them."""
    hard: HardReason | None = None
    form: str = ""
    """Of the model's graph: what numbers depend on beside machine and engine."""

    def as_json(self) -> dict[str, object]:
        return {
            "mode": self.mode.value,
            "trips": self.trips,
            "reason": self.reason,
            "fingerprint": self.fingerprint,
            "hard": None if self.hard is None else self.hard.value,
            "form": self.form,
        }


def saved(state: State, form: str = "") -> SavedCircuit:
    """What is worth keeping of `state` of an engine with this form of the graph."""
    is_lasting = state.mode not in FORCED or state.until_s is None
    mode = state.mode if is_lasting else Mode.HALF_OPEN
    return SavedCircuit(mode, state.trips, state.reason[:_MAX_REASON], state.fingerprint, state.hard, form)


def from_json(value: object) -> SavedCircuit | None:
    """What `as_json` gave; None for anything else. Nothing in a file makes this raise."""
    if not isinstance(value, Mapping):
        return None
    mode, trips, hard = value.get("mode"), value.get("trips"), value.get("hard")
    texts = value.get("reason"), value.get("fingerprint"), value.get("form", "")
    if not isinstance(mode, str) or mode not in Mode.__members__ or not isinstance(trips, int):
        return None
    if not all(isinstance(text, str) for text in texts):
        return None
    if (hard is None) is (mode == Mode.HARD_OPEN) or (hard is not None and hard not in {h.value for h in HardReason}):
        return None
    reason, fingerprint, form = (str(text)[:_MAX_REASON] for text in texts)
    known = None if hard is None else HardReason(hard)
    return SavedCircuit(Mode(mode), max(0, min(trips, _MAX_TRIPS)), reason, fingerprint, known, form)


def resumed(kept: SavedCircuit | None, now_s: Seconds, fingerprint: str, form: str = "") -> State:
    """The state to begin with, on a machine that looks like `fingerprint` now, with this form of the graph. Send it a
    Tick to set it going."""
    if kept is None or kept.mode is Mode.CLOSED:
        return closed(now_s, fingerprint)
    if kept.mode in FORCED:
        return State(kept.mode, 1, now_s, kept.reason, fingerprint)
    if kept.mode is Mode.HARD_OPEN and _is_same(kept, fingerprint, form):
        return State(Mode.HARD_OPEN, 1, now_s, kept.reason, fingerprint, until_s=now_s, hard=kept.hard)
    trips = kept.trips if kept.fingerprint == fingerprint else 0
    is_told = _ENDED in kept.reason  # by a program that ended before it was proven
    reason = kept.reason if is_told else f"it was {kept.mode} {_ENDED}: {kept.reason}"
    return State(Mode.OPEN, 1, now_s, reason, fingerprint, until_s=now_s, trips=trips, must_restart=True)


def _is_same(kept: SavedCircuit, fingerprint: str, form: str) -> bool:
    """Whether what the engine is off for is still there. Wrong numbers may be those of one form of the graph; a device,
    a driver, a process or a start is the machine's."""
    is_of_form = kept.hard is HardReason.OUTPUT_MISMATCH
    return kept.fingerprint == fingerprint and (not is_of_form or kept.form == form)
