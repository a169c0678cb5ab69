"""What kind of failure an error is: the breaker reacts to kinds, never to texts. Pure.

Only errors that say something about the engine's health have a kind. A client that went away, a deadline that was
hopeless from the start, a full queue and a request that no engine could answer have none, and are never counted.
"""

import asyncio
from enum import StrEnum

from kensho.base.errors import EngineCrashed, EngineError, EngineHung, WrongNumbers


class FailureClass(StrEnum):
    """Kinds of engine failure, mildest first."""

    UNKNOWN = "unknown"
    """An engine error that no rule names."""
    WRONG_NUMBERS = "wrong_numbers"
    """NaN or infinity instead of logits."""
    TIMEOUT = "timeout"
    """No answer in time, while the host is still there."""
    MISMATCH = "mismatch"
    """A canary answered with other ids than the expected ones."""
    STICKY = "sticky"
    """The process can never work again: every later call on this device context fails."""
    HANG = "hang"
    """No progress within the budget."""
    CRASH = "crash"
    """The host process is gone."""


STICKY_TEXTS = (
    "illegal memory access",  # CUDA 700
    "device-side assert",  # CUDA 710
    "misaligned address",  # CUDA 716
    "unspecified launch failure",  # CUDA 719
)
"""The CUDA driver documents each of these as "the process must be terminated and relaunched"; the error often
surfaces at a later, innocent call (pytorch issue 44624), and a process kept alive serves only errors."""


def classify(error: BaseException) -> FailureClass | None:
    """The kind of `error`, or None if it says nothing about the engine's health."""
    if isinstance(error, EngineCrashed):
        return FailureClass.CRASH
    if isinstance(error, EngineHung):
        return FailureClass.HANG
    if isinstance(error, WrongNumbers):
        return FailureClass.WRONG_NUMBERS
    if isinstance(error, EngineError):
        text = str(error).lower()
        return FailureClass.STICKY if any(sticky in text for sticky in STICKY_TEXTS) else FailureClass.UNKNOWN
    if isinstance(error, asyncio.TimeoutError):
        return FailureClass.TIMEOUT
    return None
