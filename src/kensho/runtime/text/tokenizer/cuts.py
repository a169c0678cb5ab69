"""Cut a text that has no pre-tokenizer into short pieces, where no merge can ever join. Pure.

A merge joins its left token's last character to its right token's first one. A place in a text whose two characters
are so joined by no merge at all is in no token, whatever happens around it: cutting there changes nothing.

Two ways. A pattern made at build cuts whole texts: before runs of marks (SentencePiece's sign for a space) if no merge
joins to them, and between groups of characters that no merge joins to each other (letters, digits, brackets ...). What
it leaves and is no token by itself is cut at every other place that allows it: the joined pairs are kept as bits at a
hash of the pair; two that share a bit only leave a cut out.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import compress, pairwise

from kensho.runtime.text.tokenizer.refuse import TablesRefused

MAX_BITS = 1 << 22
FACTOR = 0x9E3779B1
SHIFT = 12
_PAIRS_KEPT = 12_288
"""3 MB."""


def bit_of(left: str, right: str, bits: int) -> int:
    """Where the pair's bit is among `bits` (a power of two)."""
    return ((ord(left) * FACTOR + ord(right)) * FACTOR >> SHIFT) & (bits - 1)


class Joints(dict[tuple[str, str], bool]):
    """Pair of characters -> whether a text may be cut between them. Remembers some, as `Bounded` does."""

    def __init__(self, data: bytes) -> None:
        """`data`: the bits of the joined pairs, a power of two of them."""
        super().__init__()
        bits = len(data) * 8
        if not bits or bits & (bits - 1) or bits > MAX_BITS:
            raise TablesRefused("its joints are of no possible size")
        self._data = data
        self._mask = bits - 1

    def cut(self, piece: str) -> list[str]:
        """The parts of `piece`, at least one; 50 ns a character."""
        places = list(compress(range(1, len(piece)), map(self.__getitem__, pairwise(piece))))
        if not places:
            return [piece]
        return [piece[start:end] for start, end in zip([0, *places], [*places, len(piece)], strict=True)]

    def may_cut(self, left: str, right: str) -> bool:
        """Looked up, not remembered."""
        bit = ((ord(left) * FACTOR + ord(right)) * FACTOR >> SHIFT) & self._mask
        return not self._data[bit >> 3] >> (bit & 7) & 1

    def __missing__(self, pair: tuple[str, str]) -> bool:
        may_cut = self.may_cut(*pair)
        if len(self) >= _PAIRS_KEPT:
            self.clear()
        self[pair] = may_cut
        return may_cut


def at_marks(mark: str) -> str:
    """A pattern for the pieces of a text that is cut before each mark: what Metaspace does when it splits."""
    sign = re.escape(mark)
    return f"{sign}[^{sign}]*|[^{sign}]+"


def at_groups(mark: str, groups: Iterable[Sequence[str]]) -> str:
    """A pattern that cuts before each run of marks (if there is a mark) and between groups of characters.

    `groups`: none of which has the mark. What is in no group is one more.
    """
    sets = ["".join(map(re.escape, sorted(group))) for group in groups]
    sign = re.escape(mark)
    runs = "|".join([*(f"[{group}]+" for group in sets), f"[^{''.join(sets)}{sign}]+"])
    return f"{sign}*(?:{runs})|{sign}+" if mark else runs


def find_groups(pairs: Iterable[tuple[str, str]], mark: str) -> list[list[str]]:
    """Groups of characters that no pair joins to each other, the mark left out. All that is not listed is one more.

    A group's characters are ASCII, or known and neither letters nor digits: those that are not listed are taken for
    joined to each other, so that a text's unknown letters are never cut off from known ones. What is joined to nothing
    is one group: it need not be cut, and the pattern stays short.
    """
    rest, alone = "", "\0"
    parent = {rest: rest}

    def node(char: str) -> str:
        return char if char.isascii() or not char.isalnum() else rest

    def top(char: str) -> str:
        while parent.setdefault(char, char) != char:
            char = parent[char]
        return char

    for left, right in pairs:
        if mark not in (left, right):
            parent[top(node(left))] = top(node(right))
    for char in map(chr, range(128)):
        if char not in parent:
            parent[char] = alone
    groups: dict[str, list[str]] = {}
    for char in sorted(parent):
        if char not in (rest, mark) and top(char) != top(rest):
            groups.setdefault(top(char), []).append(char)
    return list(groups.values())
