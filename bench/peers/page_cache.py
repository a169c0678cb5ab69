"""Files out of the page cache, and the proof that they are: for measuring cold starts. Linux, no privileges."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

PAGE_BYTES = 4096
_LIBC = ctypes.CDLL(None, use_errno=True)


def drop(files: Iterable[Path]) -> None:
    """Clean pages that nobody maps leave the cache; dirty ones are written first."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def cached_share(files: Iterable[Path]) -> float:
    """Part of the files' pages that are in memory, by mincore."""
    cached = pages = 0
    for file in files:
        size = file.stat().st_size
        if size == 0:
            continue
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, mmap.MAP_PRIVATE) as area:
            count = -(-size // PAGE_BYTES)
            seen = (ctypes.c_ubyte * count)()
            address = ctypes.addressof(ctypes.c_char.from_buffer(area))
            if _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), seen):
                raise OSError(ctypes.get_errno(), "mincore")
            cached += sum(value & 1 for value in bytes(seen))
            pages += count
    return cached / max(1, pages)


def warm(files: Iterable[Path]) -> None:
    """Read everything once."""
    for file in files:
        with file.open("rb") as stream:
            while stream.read(1 << 22):
                pass
