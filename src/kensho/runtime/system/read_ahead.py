"""Have the kernel read a model's files before they are needed, in the order in which a start needs them (row R6).

A mapped file is read page by page as it is touched, and the first token touches nearly all of it in no order that the
kernel could guess: with the usual 128 KiB of read-ahead a cold start of 270M took 5.4 s, with this 0.64 s
(docs/adr/0026).
The kernel is told and does the rest: nothing is copied, nothing waits, and pages that are there cost nothing.

Nothing is done where it cannot help: on a device that reads far ahead by itself, and where the pages are there.
"""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

WINDOW_BYTES = 128 * 1024
"""Of one request. The kernel takes no more of it than its own read-ahead, which is this unless somebody changed it."""
FAR_KIB = 1024
"""Of a device's own read-ahead from which ours gains nothing: measured with 8192, where it cost a little."""
_SAMPLES = 16
"""Pages that are looked at to see whether a file is in memory."""


def read_ahead(files: Iterable[Path], *, goes_on: Callable[[], bool] = lambda: True, sysfs: Path = Path("/sys")) -> int:
    """Ask for the files' bytes, one after the other; returns how many were asked for. Run it in a thread.

    `goes_on` is asked before each window. It blocks where the device's queue is full. Files that are not there are
    left out: whoever opens them will say so. Never raises.
    """
    asked = 0
    for path in files:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            found = os.fstat(descriptor)
            if reads_far(found.st_dev, sysfs) or _is_in_memory(descriptor, found.st_size):
                continue
            for offset in range(0, found.st_size, WINDOW_BYTES):
                if not goes_on():
                    return asked
                size = min(WINDOW_BYTES, found.st_size - offset)
                os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)
                asked += size
        except OSError:  # a file system without it (a pipe, too)
            continue
        finally:
            os.close(descriptor)
    return asked


def reads_far(device: int, sysfs: Path = Path("/sys")) -> bool:
    """Whether the device of this number reads that far ahead by itself; False where nobody says."""
    name = f"{os.major(device)}:{os.minor(device)}"
    # The second is of a partition's disk.
    for place in (f"class/bdi/{name}/read_ahead_kb", f"dev/block/{name}/../queue/read_ahead_kb"):
        try:
            with (sysfs / place).open(encoding="ascii") as file:
                return int(file.read(32)) >= FAR_KIB
        except (OSError, ValueError):
            continue
    return False


def _is_in_memory(descriptor: int, size_bytes: int) -> bool:
    """By a sample: whether reading some bytes here and there would wait for the disk. 20 us."""
    buffer = bytearray(1)
    try:
        for index in range(_SAMPLES):
            os.preadv(descriptor, [buffer], size_bytes * index // _SAMPLES, os.RWF_NOWAIT)
    except OSError as error:
        # Not there, or a file system that cannot say: asking for what is there costs milliseconds.
        return error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL)
    return True
