"""The kinds of engine failure, and how much each says about the engine's health (ADR 60)."""

from enum import StrEnum


class FailureClass(StrEnum):
    """Mildest first."""

    UNKNOWN = "unknown"
    """An engine error that no rule names."""
    SHORTAGE = "shortage"
    """The machine had no descriptor, process or memory left for it: says nothing about the engine."""
    OUT_OF_MEMORY = "out_of_memory"
    """The engine could not get memory for this call; the next one may be smaller."""
    WRONG_NUMBERS = "wrong_numbers"
    """NaN or infinity instead of logits."""
    NOT_FASTER = "not_faster"
    """A canary on an engine that claims a device of its own took longer than the CPU: it computes on the CPU."""
    MISMATCH = "mismatch"
    """A canary answered with other ids than the expected ones, or other logits."""
    STICKY = "sticky"
    """The process can never work again: every later call on this device context fails."""
    HANG = "hang"
    """No progress within the budget."""
    CRASH = "crash"
    """The host process is gone."""
    DRIVER_MISMATCH = "driver_mismatch"
    """The driver and its libraries are of different versions; a new process does not help."""
    DEVICE_LOST = "device_lost"
    """The device is not there any more; a new process does not help."""


WEIGHTS = {
    FailureClass.UNKNOWN: 1,
    FailureClass.SHORTAGE: 1,
    FailureClass.OUT_OF_MEMORY: 1,
    FailureClass.WRONG_NUMBERS: 2,
}
"""How much one failure counts against the threshold of 3: two NaNs open. The graver classes act at once, whatever the
threshold is; a mismatch and a slow device are verdicts of a canary and need no weight."""

RESTARTS_AT_ONCE = frozenset({FailureClass.CRASH, FailureClass.HANG, FailureClass.STICKY})
"""A new process is the cure."""
NO_ROOM = frozenset({FailureClass.SHORTAGE, FailureClass.OUT_OF_MEMORY})
"""Of a start: the machine's want, and no illness of the engine."""
