"""The large sections of the tables: hash tables that `lookup` reads, bits that `cuts` reads."""

from collections.abc import Mapping, Sequence
from zlib import crc32

from kensho.runtime.text.tokenizer.build_words import Words
from kensho.runtime.text.tokenizer.cuts import MAX_BITS, bit_of
from kensho.runtime.text.tokenizer.lookup import CANONICAL, PAIR_FACTOR, PAIR_SHIFT

MAX_LOAD = 0.62
"""Share of slots taken, at most: the searches of `lookup` stay short."""


def vocab_slots(words: Words, canonical: set[str]) -> bytes:
    """Open addressing by CRC-32, see `tables`."""
    import numpy as np

    size = _slots_for(len(words.encoded))
    slots, mask = np.zeros(size, np.uint64).tolist(), size - 1
    for token in words.encoded:
        crc = crc32(words.data[token])
        at = crc & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = crc << 32 | (CANONICAL if token in canonical else 0) | (words.tokens[token] + 1)
    return np.array(slots, np.uint64).tobytes()


def merge_cells(merges: Sequence[tuple[str, str]], tokens: Mapping[str, int]) -> bytes:
    """Open addressing by the golden ratio, see `tables`: key and value side by side, in one cache line."""
    import numpy as np

    size = _slots_for(len(merges))
    keys, values, mask = [0] * size, [0] * size, size - 1
    for rank, (left, right) in enumerate(merges):
        key = (tokens[left] << 24 | tokens[right]) + 1
        at = (key * PAIR_FACTOR >> PAIR_SHIFT) & mask
        while keys[at]:
            at = (at + 1) & mask
        keys[at], values[at] = key, rank << 24 | tokens[left + right]
    return np.array([keys, values], np.uint64).T.tobytes()


def joint_bits(pairs: set[tuple[str, str]]) -> bytes:
    """At least 32 bits for each pair, so that few places look joined that are not."""
    bits = min(MAX_BITS, max(1 << 12, 1 << (32 * len(pairs)).bit_length()))
    found = bytearray(bits // 8)
    for left, right in pairs:
        bit = bit_of(left, right, bits)
        found[bit >> 3] |= 1 << (bit & 7)
    return bytes(found)


def _slots_for(entries: int) -> int:
    size = 8
    while entries > MAX_LOAD * size:
        size *= 2
    return size


def u32(numbers: Sequence[int]) -> bytes:
    """Little-endian, as all machines are that read tables."""
    import numpy as np

    return np.array(numbers, np.uint32).tobytes()
