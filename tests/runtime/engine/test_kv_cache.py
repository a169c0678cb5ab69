"""What the cache takes and gives back, by the kernel's own count of this process's memory."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from kensho.runtime.engine.kv_cache import KvCache

PAGES = 4096
"""Of 4 KB: 16 MB, far above what else may change in between."""
SLACK = 512


def own_pages() -> int:
    status = Path("/proc/self/status").read_text()
    own_kb = next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))
    return int(own_kb) * 1024 // mmap.PAGESIZE


def make() -> KvCache:
    """16 MB of which a position is 8 KB: 4 layers, 256 each of keys and values."""
    return KvCache(4, 1, 2048, 256)


def test_memory_is_taken_as_positions_are_written_and_given_back_for_good() -> None:
    before = own_pages()
    cache = make()
    assert own_pages() < before + SLACK
    cache.array[..., :1024, :] = 1
    assert before + PAGES // 2 <= own_pages() < before + PAGES // 2 + SLACK
    cache.trim(256)
    assert own_pages() < before + PAGES // 8 + SLACK
    assert (cache.array[..., :256, :] == 1).all()
    del cache
    assert own_pages() < before + SLACK


def test_a_copy_has_the_positions_asked_for_and_takes_no_more() -> None:
    first, second = make(), make()
    first.array[..., :1024, :] = np.arange(256)
    before = own_pages()
    second.copy_from(first, 512)
    assert before + PAGES // 4 <= own_pages() < before + PAGES // 4 + SLACK
    assert (second.array[..., :512, :] == first.array[..., :512, :]).all()
    assert not second.array[..., 512:513, :].any()


@pytest.mark.parametrize("positions", [0, 1, 99, 100])
def test_what_is_kept_when_positions_and_pages_do_not_fall_together(positions: int) -> None:
    cache = KvCache(2, 3, 100, 40)  # 160 bytes a position, 16 000 bytes a head
    cache.array[:] = 1
    cache.trim(positions)
    assert (cache.array[..., :positions, :] == 1).all()
    beyond = cache.array[..., positions:, :]
    assert beyond.size == 0 or np.count_nonzero(beyond) <= 2 * 2 * 3 * 2 * mmap.PAGESIZE // 4


def test_what_the_kernel_refuses_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="a KV cache of"):
        KvCache(1 << 20, 1 << 10, 1 << 10, 1 << 10)
