"""Pins: a process that uses a compiled graph holds a shared lock on its header, so that nobody evicts it.

The kernel gives the lock back when the last descriptor is closed, however the process ends: there is no stale pin. The
lock is on the file, not on a name: it moves with the folder when a damaged entry is put aside.
"""

import fcntl
import os
from pathlib import Path

from kensho.runtime.header import HEADER_FILE


def pin_graph(folder: Path) -> int | None:
    """Pin the entry in `folder` until the returned descriptor is closed, at the latest by the end of this process.

    None where there is nothing to pin (a raw graph has no header) or the file system knows no locks: an entry that is
    evicted while it is mapped stays readable anyway, only its disk space is not free before.
    """
    try:
        descriptor = os.open(folder / HEADER_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def is_pinned(folder: Path) -> bool:
    """Whether some process, this one included, holds a pin on the entry."""
    try:
        descriptor = os.open(folder / HEADER_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
