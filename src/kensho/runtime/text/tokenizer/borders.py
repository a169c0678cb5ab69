"""Begin byte-level merges with characters instead of bytes, wherever that changes nothing. Pure.

A Chinese character is three bytes, and most of the merging only puts them together again. Let f be the highest rank
among the merges that make the token of character Z of its bytes. Until Z is complete, a merge of rank f or lower is
waiting inside it, and merges are done in order of rank: nothing of a higher rank happens anywhere before Z is complete.
So Z may be one symbol from the start, if all that could touch it or its bytes from outside is of a higher rank:

1. every merge of Z's token with another one (checked at build, for all of them);
2. every merge that joins a *part* of Z across its border (its last bytes with what follows, its first ones with what
   comes before). There are some hundreds of such merges; which of them can happen between two given characters is
   looked up here. A part of a neighbour that is complete by then does not count.

A character for which 2 does not hold begins as bytes, as does one that is no token. What is left of it when a part was
taken away may touch its other neighbour at any rank: so that border is looked at again, and so on.

Where no merge at all joins two neighbours, of whole characters (`cuts.Joints`) or of parts, a piece is cut.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

from kensho.runtime.text.tokenizer.bounded import Bounded
from kensho.runtime.text.tokenizer.cuts import Joints
from kensho.runtime.text.tokenizer.lookup import NO_MERGE, Merges
from kensho.runtime.text.tokenizer.refuse import TablesRefused

Pair = tuple[bytes, bytes]
MAX_BORDERS = 20_000
"""Guess: 30 times those of a vocabulary of 60k that was trained on 13 languages."""
_NEVER = 1 << 61
_LEFT_IS_BYTES, _RIGHT_IS_BYTES, _CUT = 1, 2, 4
_QUIET, _LOUD = frozenset({0, _CUT}), frozenset({1, 2, 3})
_STEPS = ((), (0,), (1,), (0, 1))
"""By sides: which of the characters at a border."""
_CHARS_KEPT = 4096
_PAIRS_KEPT = 8192


class Borders:
    """Which characters of a piece may be symbols."""

    def __init__(self, data: bytes, joints: Joints, byte_ids: Sequence[int], merges: Merges) -> None:
        """`data`: the section, empty where no character may. `joints`: which whole characters merges join."""
        self._joints = joints
        self._ranks = _parse(data)
        self._lefts = {left for left, _ in self._ranks}
        self._rights = {right for _, right in self._ranks}
        self._byte_ids = byte_ids
        self._value_of: Callable[[tuple[int, int]], int] = merges.__getitem__
        self._chars: Bounded[str, tuple[int, int]] = Bounded(self._form, _CHARS_KEPT)
        self._ids: Bounded[str, int] = Bounded(lambda char: self._chars[char][0], _CHARS_KEPT)
        self._pairs: Bounded[tuple[str, str], int] = Bounded(self._look, _PAIRS_KEPT)
        self._broken_pairs: Bounded[tuple[str, str, bool, bool], int] = Bounded(self._look_at, _PAIRS_KEPT)

    def cut(self, piece: str) -> list[str]:
        """The parts of a piece, which have the same ids alone; at least one."""
        if not self._ranks:
            return [piece]
        found = map(self._pairs.__getitem__, pairwise(piece))
        places = [at for at, sides in enumerate(found, 1) if sides == _CUT]
        if not places:
            return [piece]
        return [piece[start:end] for start, end in zip([0, *places], [*places, len(piece)], strict=True)]

    def symbols(self, piece: str) -> list[int]:
        """The ids to begin with; 100 ns a character."""
        if not self._ranks:
            return list(map(self._byte_ids.__getitem__, piece.encode()))
        ids = list(map(self._ids.__getitem__, piece))
        found = list(map(self._pairs.__getitem__, pairwise(piece)))
        if min(ids) >= 0 and _QUIET.issuperset(found):
            return ids
        made: list[int] = []
        start = 0
        for at in sorted(self._broken(piece, ids, found)):
            made += ids[start:at]
            made += map(self._byte_ids.__getitem__, piece[at].encode())
            start = at + 1
        return made + ids[start:]

    def _broken(self, piece: str, ids: Sequence[int], found: Sequence[int]) -> set[int]:
        """The places of the characters that begin as bytes."""
        broken = {at for at, token in enumerate(ids) if token < 0}
        waiting: list[int] = []
        for left, sides in enumerate(found):
            if sides in _LOUD:
                waiting += _new(left, sides, broken)
        while waiting:
            at = waiting.pop()
            for left in (at - 1, at):
                if 0 <= left < len(found) and not (left in broken and left + 1 in broken):
                    border = (piece[left], piece[left + 1], left in broken, left + 1 in broken)
                    waiting += _new(left, self._broken_pairs[border], broken)
        return broken

    def _form(self, char: str) -> tuple[int, int]:
        """The token of a character and the highest rank that it takes; (-1, never) if it does not become one."""
        ids = [self._byte_ids[byte] for byte in char.encode()]
        highest = -1
        while len(ids) > 1:
            values = list(map(self._value_of, pairwise(ids)))
            best = min(values)
            if best == NO_MERGE:
                return (-1, _NEVER)
            at = values.index(best)
            ids[at : at + 2] = (best & 0xFFFFFF,)
            highest = max(highest, best >> 24)
        return (ids[0], highest)

    def _look(self, pair: tuple[str, str]) -> int:
        return self._look_at((*pair, False, False))

    def _look_at(self, border: tuple[str, str, bool, bool]) -> int:
        """Which of the two must begin as bytes beside the other, where they do already or not."""
        left_char, right_char, is_left_broken, is_right_broken = border
        left, right = left_char.encode(), right_char.encode()
        rights = [right[:end] for end in range(1, len(right) + 1) if right[:end] in self._rights]
        if not rights:
            return _CUT if self._joints.may_cut(left_char, right_char) else 0
        is_apart = self._joints.may_cut(left_char, right_char)
        left_formed = _NEVER if is_left_broken else self._chars[left_char][1]
        right_formed = _NEVER if is_right_broken else self._chars[right_char][1]
        found = 0
        for start in range(len(left)):
            if left[start:] not in self._lefts:
                continue
            for part in rights:
                rank = self._ranks.get((left[start:], part), _NEVER)
                is_apart = is_apart and rank == _NEVER
                is_left_part, is_right_part = start > 0, len(part) < len(right)
                if (rank < left_formed or not is_left_part) and (rank < right_formed or not is_right_part):
                    found |= is_left_part * _LEFT_IS_BYTES | is_right_part * _RIGHT_IS_BYTES
        return _CUT if is_apart else found


def _new(left: int, sides: int, broken: set[int]) -> list[int]:
    """Adds the sides of a border to `broken`; returns those that were not there."""
    if sides not in _LOUD:
        return []
    found = [left + step for step in _STEPS[sides] if left + step not in broken]
    broken.update(found)
    return found


def dump_borders(merges: Sequence[Pair]) -> bytes:
    """The section: the lowest rank of a merge for (end of the left, beginning of the right) where one is but a part.

    The end is the last character, or what there is of it; the beginning the first, or what there is of it. Empty if
    rule 1 does not hold, or there are too many.
    """
    rank_of = {pair: rank for rank, pair in enumerate(merges)}
    first_use: dict[bytes, int] = {}
    ranks: dict[Pair, int] = {}
    for rank, (left, right) in enumerate(merges):
        first_use.setdefault(left, rank)
        first_use.setdefault(right, rank)
        start = _start_of_last(left)
        if _is_inside(right[0]) or (start >= 0 and len(left) - start < _length(left[start])):
            continue  # not at the border of two characters
        head = right[: _length(right[0])]
        if start < 0 or len(head) < _length(right[0]):
            ranks.setdefault((left[max(start, 0) :], head), rank)
    is_late = any(_formed_at(token, rank_of) >= rank for token, rank in first_use.items() if _is_char(token))
    if is_late or len(ranks) > MAX_BORDERS:
        return b""
    found = [[left.hex(), right.hex(), rank] for (left, right), rank in ranks.items()]
    return json.dumps(found or [["", "", 0]], separators=(",", ":")).encode()


def whole_pairs(merges: Iterable[Pair]) -> set[tuple[str, str]]:
    """(last character of the left, first one of the right) of the merges where both are whole."""
    found = set()
    for left, right in merges:
        start = _start_of_last(left)
        last, first = left[max(start, 0) :], right[: _length(right[0])]
        try:
            found.add((last.decode(), first.decode()))
        except UnicodeDecodeError:
            continue  # parts of characters, or what is in no text
    return found


def _parse(data: bytes) -> Mapping[Pair, int]:
    try:
        items = json.loads(data) if data else []
        return {(bytes.fromhex(left), bytes.fromhex(right)): int(rank) for left, right, rank in items}
    except (ValueError, TypeError, RecursionError) as error:
        raise TablesRefused("its borders of characters are not readable") from error


def _formed_at(token: bytes, rank_of: Mapping[Pair, int]) -> int:
    """The highest rank among the merges that make the token of its bytes; -1 if they do not: it is never there."""
    parts = [token[at : at + 1] for at in range(len(token))]
    highest, none = -1, len(rank_of)
    while len(parts) > 1:
        ranks = [rank_of.get(pair, none) for pair in pairwise(parts)]
        best = min(ranks)
        if best == none:
            return -1
        at = ranks.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
        highest = max(highest, best)
    return highest


def _is_char(token: bytes) -> bool:
    """Whether it is one character of several bytes."""
    return len(token) > 1 and [_is_inside(byte) for byte in token] == [False] + [True] * (_length(token[0]) - 1)


def _length(first: int) -> int:
    """Bytes of the character that begins with this byte."""
    return 1 if first < 0x80 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def _is_inside(byte: int) -> bool:
    return byte & 0xC0 == 0x80


def _start_of_last(data: bytes) -> int:
    """Where its last character begins; -1 if before it."""
    at = len(data) - 1
    while at >= 0 and _is_inside(data[at]):
        at -= 1
    return at
