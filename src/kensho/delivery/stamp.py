"""Whether a store's database has changed, without opening it: for programs that stay and are asked often.

    stamp = read_stamp(store, now=clock.wall_s())         # before reading: what is read is at least as new
    ...
    if stamp is None or read_stamp(store, now=clock.wall_s()) != stamp:
        ...                                               # somebody may have committed something: read again

In WAL mode a commit writes to the log and a checkpoint to the file, whichever process does it. Reading writes neither.
"""

import os
from pathlib import Path

from kensho.base.clock import Seconds

TICK_S: Seconds = 0.05
"""A file that was written so lately may be written again without another time: five ticks of the slowest kernel."""
_FILES = ("state.db", "state.db-wal")

Stamp = tuple[tuple[int, int, int], ...]


def read_stamp(store: Path, *, now: Seconds) -> Stamp | None:
    """Another value after each change that was committed, and possibly after none. None: something was written just
    `now` (wall time), and the next commit could look the same. Two stat(2), 5 us, no lock; raises no error."""
    found: list[tuple[int, int, int]] = []
    for name in _FILES:
        try:
            seen = os.stat(f"{store}/{name}")  # noqa: PTH116 - on the path of each request
        except OSError:  # no log, or the disk is away
            found.append((0, 0, 0))
            continue
        if abs(now - seen.st_mtime) < TICK_S:
            return None
        found.append((seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return tuple(found)
