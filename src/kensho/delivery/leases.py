"""Who uses a version says so: a shared kernel lock (flock(2)) on its folder, so that no other process removes it.

An engine that is started again opens the version's files by name, so they must stay while anybody serves them, also
two versions later. The kernel gives the lock back however its process ends: it is never stale. On a file system without
locks a lease holds nothing; files that are open stay readable all the same.
"""

import errno
import fcntl
import os
from pathlib import Path

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP})


class Lease:
    """Held until `close`, or the end of the process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def lease_version(folder: Path) -> Lease | None:
    """Keep the version in `folder` from being removed; None if it is gone. Waits for one who is removing it."""
    return _lock(folder, fcntl.LOCK_SH)


def claim_version(folder: Path) -> Lease | None:
    """The right to remove it: nobody can lease it until this is closed. None if somebody, we included, has a lease.

    A folder that is not there has no users: the claim on it holds nothing.
    """
    if not folder.is_dir():
        return Lease(-1)
    return _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock(folder: Path, kind: int) -> Lease | None:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, kind)
        if not os.path.samestat(os.fstat(fd), folder.stat()):
            raise FileNotFoundError(folder)  # removed, and perhaps made again, before the lock was ours
    except (BlockingIOError, FileNotFoundError):
        os.close(fd)
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(fd)
            raise
    return Lease(fd)
