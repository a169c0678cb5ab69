"""What kind of failure an error is: the breaker reacts to kinds, never to texts. Pure.

Only errors that say something about the engine's health have a kind. A client that went away, a deadline that was
hopeless from the start, a full queue and a request that no engine could answer have none, and are never counted.
"""

import errno

from kensho.base.errors import EngineCrashed, EngineError, EngineHung, NotEnoughMemory, WrongNumbers
from kensho.resilience.failure_class import NO_ROOM, FailureClass
from kensho.resilience.failure_messages import failure_of

__all__ = ["FailureClass", "classify", "classify_start"]

_NEEDS_MORE_THAN_A_PROCESS = frozenset({FailureClass.DEVICE_LOST, FailureClass.DRIVER_MISMATCH})
_OF_THE_MACHINE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""No descriptor left for this process or for all, no memory, no process (which fork says with EAGAIN)."""
_MAX_CAUSES = 8


def classify(error: BaseException) -> FailureClass | None:
    """The kind of `error`, or None if it says nothing about the engine's health."""
    if isinstance(error, EngineCrashed):
        # A host that died of a lost device says so in its last words; of all other deaths a new process is the cure.
        said = failure_of(_last_words(error))
        return said if said in _NEEDS_MORE_THAN_A_PROCESS else FailureClass.CRASH
    if isinstance(error, EngineHung):
        return FailureClass.HANG
    if isinstance(error, WrongNumbers):
        return FailureClass.WRONG_NUMBERS
    if isinstance(error, NotEnoughMemory):
        return FailureClass.OUT_OF_MEMORY
    if _is_shortage(error):
        return FailureClass.SHORTAGE
    if isinstance(error, EngineError):
        return failure_of(str(error)) or FailureClass.UNKNOWN
    return None


def classify_start(error: BaseException) -> FailureClass:
    """The kind of a start that failed with `error`. A host that died of the machine's want before it was up has
    nothing to do with the model in it: its last words count, which those of a host at work do not."""
    kind = classify(error) or FailureClass.CRASH
    said = failure_of(_last_words(error)) if isinstance(error, EngineCrashed) else None
    return said if said in NO_ROOM else kind


def _last_words(error: EngineCrashed) -> str:
    return f"{error} {error.facts.get('stderr', '')}"


def _is_shortage(error: BaseException) -> bool:
    """Whether it, or what caused it, is a want of the machine's."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return False
        if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in _OF_THE_MACHINE):
            return True
        cause = cause.__cause__
    return False
