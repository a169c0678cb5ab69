"""Make an engine host misbehave for real, so that failures can be rehearsed (row S6). Only where it was allowed.

Nothing is pretended: `crash` is SIGKILL to the own process, `hang` stops answering for good, `oom` is the kernel
refusing memory, `nan` and `wrong` spoil the numbers that the model computed (`wrong` to finite, plausible ones),
`truncate` ends the process in the middle of a message. A fault is for one request, `slow_start` for one load, and
`ignore_sigterm` from one request on: it is answered as ever, but neither SIGTERM nor a closed socket ends this process
any more, as if it were stuck in work that nobody can interrupt. SIGKILL does.
"""

import os
import resource
import signal
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import EngineError
from kensho.runtime.hosts.frames import FaultKind

SLOW_STEP_S = 0.3
"""What `slow` adds to every step: 10 to 50 times a usual one."""
SLOW_START_S = 1.5
"""What `slow_start` adds to a load: ten times a usual one."""
_OOM_BYTES = 256 << 20


class Faults:
    """What goes wrong in the coming request, if anything."""

    def __init__(self) -> None:
        self._next: FaultKind | None = None
        self._now: FaultKind | None = None
        self._outstays = False

    def arm(self, kind: FaultKind) -> None:
        """The next request meets this fault."""
        self._next = kind

    def before_load(self) -> None:
        """A model is about to be loaded."""
        if self._next == "slow_start":
            self._next = None
            time.sleep(SLOW_START_S)

    @property
    def cuts_answers(self) -> bool:
        """Whether an answer to this request is to be cut off, and the host to end."""
        return self._now == "truncate"

    def begin(self) -> None:
        """A request begins."""
        self._now, self._next = self._next, None

    def before_step(self) -> None:
        """Act before the engine computes: raise, stop answering, or end the process."""
        match self._now:
            case "fail":
                raise EngineError("the engine failed because a fault was armed", advice="clear the fault")
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                _stay()
            case "slow":
                time.sleep(SLOW_STEP_S)
            case "oom":
                _run_out_of_memory()
            case "ignore_sigterm":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self._outstays = True

    def before_end(self) -> None:
        """Nobody is there any more for whom to work: the process is about to end, or to outstay that."""
        if self._outstays:
            _stay()

    def spoil(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """The logits, or what a sick device would have handed out."""
        if self._now == "nan":
            return np.full_like(logits, np.nan)
        # Each token gets its neighbour's probability: as likely as the right answer, and not it.
        return np.roll(logits, 1) if self._now == "wrong" else logits


def _stay() -> NoReturn:
    while True:
        time.sleep(3600)


def _run_out_of_memory() -> None:
    """Raises MemoryError, because the kernel refuses: the limit is put just above what is in use, then given back."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + _OOM_BYTES // 2, limits[1]))
    try:
        bytearray(_OOM_BYTES)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
