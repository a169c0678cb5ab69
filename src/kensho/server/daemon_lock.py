"""One daemon for one store: a kernel lock on STORE/daemon.lock, which ends with the process, however it ends.

    with DaemonLock(store, clock=clock):     # raises DaemonRunning, which says who
        ...

The file stays; what it says is for people, and only true while it is locked.
"""

import contextlib
import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import DaemonRunning, StorageError

LOCK_NAME = "daemon.lock"
RETRY_S: Seconds = 0.1
_MAX_WORDS = 200


class DaemonLock:
    """Held from making it until `close`. Not inherited by child processes."""

    def __init__(self, store: Path, *, clock: Clock) -> None:
        """Raises DaemonRunning, and StorageError where the store's disk refuses."""
        try:
            self._fd = os.open(store / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise StorageError(
                f"cannot open {store / LOCK_NAME}: {error.strerror}", advice="check the store's folder"
            ) from error
        # A second look: who asks whether a daemon runs holds the lock for a moment, too.
        is_mine = _lock(self._fd)
        if not is_mine:
            clock.sleep(RETRY_S)
            is_mine = _lock(self._fd)
        if not is_mine:
            words = _words(self._fd)
            self.close()
            raise DaemonRunning(
                f"a daemon runs on this store already{f' ({words})' if words else ''}",
                advice="use it, or stop it first with SIGTERM",
            )
        since = datetime.fromtimestamp(clock.wall_s(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"process {os.getpid()}, since {since}".encode(), 0)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def running_daemon(store: Path) -> str | None:
    """Who holds the store's lock ("process 4711, since ..."), in words; None if nobody does."""
    try:
        fd = os.open(store / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _words(fd)
    finally:
        os.close(fd)
    return None


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _words(fd: int) -> str:
    return os.pread(fd, _MAX_WORDS, 0).decode("ascii", "replace")
