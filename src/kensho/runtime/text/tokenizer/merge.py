"""Byte-pair encoding of one piece: join the pair of lowest rank, leftmost first, until no pair has one. Pure.

Two ways to the same result. Short pieces: a list of values, its minimum, a splice; nothing is faster for words. Long
ones: a heap of the pairs that have a rank and links between the symbols, O(merges log merges), so that a megabyte
without a space costs seconds and not days.
"""

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

from kensho.runtime.text.tokenizer.lookup import LEFT, NO_MERGE, RIGHT

Pair = tuple[int, int]
PairValue = Callable[[Pair], int]
"""rank << 24 | new id of a pair; NO_MERGE for one that is never joined."""
SHORT = 60
"""Symbols; where the two ways take the same time (measured, words of many merges)."""
_ID = (1 << 24) - 1
_POSITION = (1 << 32) - 1


def merge(ids: list[int], value_of: PairValue, kinds: Sequence[int]) -> list[int]:
    """The ids that are left. `ids` is used up. Cost: about 1.5 us a merge.

    `kinds` of a token says whether it is LEFT or RIGHT in any merge at all: most are not, and need not be looked up.
    """
    return _merge_short(ids, value_of, kinds) if len(ids) <= SHORT else _merge_long(ids, value_of, kinds)


def _merge_short(ids: list[int], value_of: PairValue, kinds: Sequence[int]) -> list[int]:
    values = list(map(value_of, pairwise(ids)))
    while values:
        best = min(values)
        if best == NO_MERGE:
            break
        at = values.index(best)
        new = best & _ID
        kind = kinds[new]
        ids[at] = new
        del ids[at + 1], values[at]
        if at < len(values):
            values[at] = value_of((new, ids[at + 1])) if kind & LEFT else NO_MERGE
        if at:
            values[at - 1] = value_of((ids[at - 1], new)) if kind & RIGHT else NO_MERGE
    return ids


def _merge_long(ids: list[int], value_of: PairValue, kinds: Sequence[int]) -> list[int]:
    count = len(ids)
    values = list(map(value_of, pairwise(ids)))
    values.append(NO_MERGE)
    heap = [value << 32 | at for at, value in enumerate(values) if value != NO_MERGE]
    if not heap:
        return ids
    heapify(heap)
    following, before = list(range(1, count + 1)), list(range(-1, count - 1))
    while heap:
        item = heappop(heap)
        at, value = item & _POSITION, item >> 32
        if values[at] != value:
            continue  # of a pair that is no more
        gone = following[at]
        after = following[gone]
        new = value & _ID
        kind = kinds[new]
        ids[at] = new
        ids[gone] = -1
        values[at] = values[gone] = NO_MERGE
        following[at] = after
        if after < count:
            before[after] = at
            if kind & LEFT and (value := value_of((new, ids[after]))) != NO_MERGE:
                values[at] = value
                heappush(heap, value << 32 | at)
        left = before[at]
        if left >= 0:
            values[left] = value = value_of((ids[left], new)) if kind & RIGHT else NO_MERGE
            if value != NO_MERGE:
                heappush(heap, value << 32 | left)
    return [token for token in ids if token >= 0]
