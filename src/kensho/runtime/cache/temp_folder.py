"""Private folders that disappear: with their owner's `close`, or, if the owner was killed, at the next sweep.

A temporary folder is locked by its owner (the kernel gives the lock back), so a sweep knows a dead one by its free
lock; neither a process number nor an age is trusted.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from kensho.runtime.cache.pins import FileLock

PREFIX = ".tmp-kensho-"
"""So that a sweep of a folder that others use too touches nothing of theirs."""
Token = Callable[[], str]
"""Returns a fresh random name part of letters and digits (`secrets.token_hex`)."""


class TempFolder:
    """An empty folder of one's own. `path` may be renamed away: `close` then only gives back the lock."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, parent: Path, token: Token) -> "TempFolder":
        """A new folder below `parent` (made if absent). Raises OSError."""
        parent.mkdir(parents=True, exist_ok=True)
        while True:
            path = parent / f"{PREFIX}{os.getpid()}-{token()}"
            path.mkdir()
            # A sweep may come between these two steps and take the new folder for a dead one.
            with contextlib.suppress(FileNotFoundError):
                if lock := FileLock.on_folder(path):
                    return cls(path, lock)

    def close(self) -> None:
        """Remove it with all that is in it. Idempotent."""
        import shutil  # here: an answer from a graph that is there needs none (3 ms)

        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep(parent: Path) -> int:
    """Remove the temporary folders below `parent` whose owners are gone; returns how many. Never raises."""
    removed = 0
    with contextlib.suppress(OSError):
        for path in parent.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if lock := FileLock.on_folder(path):
                    TempFolder(path, lock).close()
                    removed += 1
    return removed
