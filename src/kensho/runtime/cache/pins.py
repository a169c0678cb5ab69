"""Locks of the kernel's on files of the graph cache (flock(2)): given back however a process ends, so never stale.

A *pin* is a shared lock on the header of an entry: who uses a compiled graph holds one, and nobody evicts it meanwhile.
It is on the file, not on a name, so it moves with the folder when a damaged entry is put aside. A *file lock* is
exclusive and named: one process compiles a key, and a temporary folder whose lock is free has lost its owner.
"""

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from kensho.runtime.cache.header import HEADER_FILE

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


class Pin:
    """Held until `close`, or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        # A cancelled task may lose what a thread was still fetching for it.
        self.close()


def pin_graph(folder: Path) -> Pin:
    """Pin the entry in `folder`. Raises FileNotFoundError when there is none, other OSErrors.

    Waits while it is being evicted (milliseconds), and finds it gone then. On a file system without locks the pin
    holds nothing: an entry that is removed while it is mapped stays readable, only a later start has to compile again.
    """
    path = folder / HEADER_FILE
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not waiting for what is no plain file
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        if not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise FileNotFoundError(f"{path} was replaced")
    except BaseException:
        os.close(descriptor)
        raise
    return Pin(descriptor)


def claim_unpinned(folder: Path) -> "FileLock | None":
    """Keep new pins off the entry in `folder` until the lock is closed; None if somebody, we included, has pinned it.

    Raises OSError, also when there is no entry.
    """
    return FileLock.on_existing(folder / HEADER_FILE)


def is_pinned(folder: Path) -> bool:
    """Whether some process, this one included, holds a pin on the entry in `folder`."""
    try:
        claim = claim_unpinned(folder)
    except OSError:
        return False
    if claim is None:
        return True
    claim.close()
    return False


class FileLock:
    """An exclusive lock on a file or folder, held until `close`."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    @classmethod
    def on_file(cls, path: Path) -> "FileLock | None":
        """The lock on the file `path`, which is made if absent; None while somebody holds it. Raises OSError."""
        return cls._take(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW)

    @classmethod
    def on_existing(cls, path: Path) -> "FileLock | None":
        """The lock on the file `path`; None while somebody holds it. Raises OSError, also when it is absent."""
        return cls._take(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    @classmethod
    def on_folder(cls, path: Path) -> "FileLock | None":
        """The lock on the folder `path`; None while somebody holds it. Raises OSError, also when it is gone."""
        return cls._take(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    @classmethod
    def _take(cls, path: Path, flags: int) -> "FileLock | None":
        while True:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Its last holder may have removed it in between: a lock on a name that is gone keeps nobody out.
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return cls(descriptor, path)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def note(self, data: bytes) -> None:
        """Replace what the locked file holds, for those who wait for the lock: a hint, which may be lost."""
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, data, 0)
            os.ftruncate(self._descriptor, len(data))

    def close(self, *, remove: bool = False) -> None:
        """Give it back; `remove` unlinks the lock's file first. Idempotent."""
        if self._descriptor < 0:
            return
        if remove:
            self._path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        self.close()
