"""Token bytes -> id, pair of ids -> merge, id -> bytes: lookups in the mapped tables. About 1 us each.

Every index is bounded and every block is checked before it is used, so a damaged file ends in TablesRefused: no read
out of range, no endless search, no wrong id.
"""

from typing import Literal
from zlib import crc32

from kensho.runtime.text.tokenizer.refuse import TablesRefused
from kensho.runtime.text.tokenizer.tables import BLOCK_BYTES, Tables

CANONICAL = 1 << 31
"""Set in what `Vocabulary.find` returns: merges make exactly this one token of these bytes."""
ID_MASK = CANONICAL - 1
LEFT, RIGHT = 4, 8
"""Bits of a token's kind: it is the left, or the right one of some merge."""
MAX_TOKENS = (1 << 24) - 2
"""Two ids and a rank fit into 64 bits."""
NO_MERGE = 1 << 62
"""Above every value of a pair."""
PAIR_FACTOR = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio (Knuth, The Art of Computer Programming, 6.4)."""
PAIR_SHIFT = 20
_PAIRS_KEPT = 16_384
"""3 MB."""
_MAX_PROBES = 1024
"""Guess: with at most 0.62 of the slots taken, runs stay under 100."""


class Vocabulary:
    """The tokens by their bytes and by their ids."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._is_checked = tables.is_checked
        slots, self._slots_block = tables.view("vocab")
        offsets, self._offsets_block = tables.view("offsets")
        self._blob, self._blob_block = tables.view("blob")
        self._slots = _cast(slots, "Q")
        self._offsets = _cast(offsets, "I")
        self._mask = _mask_of(len(self._slots), "vocab")
        self.size = len(self._offsets) - 1
        """Ids are 0 to size - 1."""
        kinds, _ = tables.view("kinds")
        if not 0 < self.size == len(kinds) <= MAX_TOKENS:
            raise TablesRefused("its sections do not fit each other")

    def find(self, data: bytes) -> int:
        """0 if there is no such token, else id + 1, with CANONICAL set or not."""
        crc = crc32(data)
        slots, mask, is_checked, first = self._slots, self._mask, self._is_checked, self._slots_block
        at = crc & mask
        for _ in range(_MAX_PROBES):
            block = first + (at >> 9)
            if not is_checked[block]:
                self._tables.check(block)
            slot = slots[at]
            if not slot:
                return 0
            if slot >> 32 == crc:
                entry = slot & 0xFFFFFFFF
                if self.text((entry & ID_MASK) - 1) == data:
                    return entry
            at = (at + 1) & mask
        raise TablesRefused("its vocabulary has no end")

    def text(self, token: int) -> bytes:
        """The bytes of a token, nothing for an id that is none."""
        if not 0 <= token < self.size:
            return b""
        is_checked, offsets = self._is_checked, self._offsets
        block = self._offsets_block + (token >> 10)
        if not is_checked[block]:
            self._tables.check(block)
        after = self._offsets_block + ((token + 1) >> 10)
        if not is_checked[after]:
            self._tables.check(after)
        start, end = offsets[token], offsets[token + 1]
        if not start <= end <= len(self._blob):
            raise TablesRefused("a token lies outside")
        for block in range(self._blob_block + start // BLOCK_BYTES, self._blob_block + -(-end // BLOCK_BYTES)):
            if not is_checked[block]:
                self._tables.check(block)
        return bytes(self._blob[start:end])


class Merges(dict[tuple[int, int], int]):
    """(left, right) -> rank << 24 | new id, NO_MERGE if the two are never joined. Remembers some, as `Bounded` does."""

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self._tables = tables
        self._is_checked = tables.is_checked
        cells, self._block = tables.view("merges")
        self._cells = _cast(cells, "Q")
        self._mask = _mask_of(len(self._cells) // 2, "merges")

    def __missing__(self, pair: tuple[int, int]) -> int:
        left, right = pair
        key = (left << 24 | right) + 1
        cells, mask, is_checked = self._cells, self._mask, self._is_checked
        at = (key * PAIR_FACTOR >> PAIR_SHIFT) & mask
        for _ in range(_MAX_PROBES):
            block = self._block + (at >> 8)
            if not is_checked[block]:
                self._tables.check(block)
            found = cells[2 * at]
            if found == key or not found:
                value: int = cells[2 * at + 1] if found else NO_MERGE
                if len(self) >= _PAIRS_KEPT:
                    self.clear()
                self[pair] = value
                return value
            at = (at + 1) & mask
        raise TablesRefused("its merges have no end")


def _cast(view: memoryview, kind: Literal["I", "Q"]) -> memoryview:
    try:
        return view.cast(kind)
    except TypeError as error:
        raise TablesRefused("a section has an odd length") from error


def _mask_of(slots: int, name: str) -> int:
    if slots < 1 or slots & (slots - 1):
        raise TablesRefused(f"{name} has {slots} slots, no power of two")
    return slots - 1
