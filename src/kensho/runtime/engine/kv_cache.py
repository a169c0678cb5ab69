"""The keys and values of one sequence: an array in a map of its own, whose pages are taken as positions are written.

`array` is (2 * layers, 1, kv_heads, positions, head_dim): layer n has its keys at 2n and its values at 2n + 1. The map
goes back to the kernel with the last reference to the array; `trim` gives back earlier what is not needed any more.
"""

import contextlib
import mmap
from math import prod

import numpy as np
from numpy.typing import NDArray


class KvCache:
    """Room for `positions` ids, none of it taken yet. Raises MemoryError."""

    def __init__(self, layers: int, kv_heads: int, positions: int, head_dim: int) -> None:
        shape = (2 * layers, 1, kv_heads, positions, head_dim)
        # Not `np.zeros`, which takes memory only where it is written in a fresh process alone: once blocks of this
        # size were freed, malloc keeps them on its heap and clears them by hand. Measured for 270M and 2048 tokens:
        # 30 ms and 75 MB for every load but the first. Private, since shared maps are files to the kernel: their pages
        # cost half as much again to take, three times to give back, and are not in RssAnon.
        try:
            self._map = mmap.mmap(-1, 4 * prod(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"a KV cache of {4 * prod(shape)} bytes: {error.strerror}") from error
        # Where huge pages are given unasked, the first id would take 2 MB of every layer. Kernels without them refuse.
        with contextlib.suppress(OSError):
            self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self.array: NDArray[np.float32] = np.frombuffer(self._map, np.float32).reshape(shape)

    def copy_from(self, other: "KvCache", positions: int) -> None:
        """Have what the other has at its first `positions`. For 270M and 400 of them 6 ms, nearly all for new pages."""
        self.array[..., :positions, :] = other.array[..., :positions, :]

    def trim(self, positions: int) -> None:
        """Give back the memory of all but the first `positions`; whole pages, and they read as zero afterwards."""
        layers, _, heads, most, head_dim = self.array.shape
        block_bytes, kept_bytes = 4 * most * head_dim, 4 * positions * head_dim
        for begin in range(0, layers * heads * block_bytes, block_bytes):
            first = -(-(begin + kept_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
            after = (begin + block_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            if first < after:
                self._map.madvise(mmap.MADV_DONTNEED, first, after - first)
