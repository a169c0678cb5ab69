"""The ids of one piece of text: a whole token, or merges. Remembered for pieces that are short enough to come again."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain

from kensho.runtime.text.tokenizer.borders import Borders
from kensho.runtime.text.tokenizer.bounded import Bounded
from kensho.runtime.text.tokenizer.cuts import Joints
from kensho.runtime.text.tokenizer.lookup import CANONICAL, ID_MASK, Merges, Vocabulary
from kensho.runtime.text.tokenizer.merge import merge
from kensho.runtime.text.tokenizer.plan import Plan
from kensho.runtime.text.tokenizer.tables import Tables

MAX_KEPT_CHARS = 64
"""Longer pieces are rarely seen again."""
_PIECES_KEPT = 8192
"""2 MB."""
_CHARS_KEPT = 4096

Ids = tuple[int, ...]


class Pieces(ABC):
    """Call `encode` with the pieces of a text."""

    def __init__(self, tables: Tables, plan: Plan) -> None:
        self._plan = plan
        self._vocabulary = Vocabulary(tables)
        self._merges = Merges(tables)
        self._tables = tables
        self._kinds = b""
        self._known: Bounded[str, Ids] = Bounded(self._make, _PIECES_KEPT)
        # A whole piece that is a token needs no merges then, the same text within a piece does.
        self._parts = Bounded(self._part, _PIECES_KEPT) if plan.ignores_merges else self._known

    def encode(self, pieces: list[str]) -> list[int]:
        """Their ids, one after the other."""
        if len(max(pieces, key=len, default="")) <= MAX_KEPT_CHARS:
            return list(chain.from_iterable(map(self._known.__getitem__, pieces)))
        ids: list[int] = []
        for piece in pieces:
            ids += self._known[piece] if len(piece) <= MAX_KEPT_CHARS else self._make(piece)
        return ids

    def _make(self, piece: str) -> Ids:
        if token := self._whole_token(piece, has_to_be_merged=not self._plan.ignores_merges):
            return token
        parts = self._cut(piece)
        if len(parts) == 1:
            return self._merged(self._symbols(piece))
        return tuple(chain.from_iterable([self._parts.get(part) or self._part(part) for part in parts]))

    def _part(self, piece: str) -> Ids:
        """Of a piece that cannot be cut further: it has the same ids wherever it was cut out, so it is remembered."""
        ids = self._whole_token(piece, has_to_be_merged=True) or self._merged(self._symbols(piece))
        if len(piece) <= MAX_KEPT_CHARS:
            self._parts.keep(piece, ids)
        return ids

    @abstractmethod
    def _cut(self, piece: str) -> list[str]:
        """At the places where nothing can be joined, if it is worth looking for them; at least one part."""

    @abstractmethod
    def _symbols(self, piece: str) -> list[int]:
        """The ids that merges begin with."""

    def _whole_token(self, piece: str, *, has_to_be_merged: bool) -> Ids:
        """Nothing, if the piece is none, or (where that matters) none that merges would make of it."""
        if len(piece) > self._plan.max_token_chars:
            return ()
        entry = self._vocabulary.find(piece.encode())
        if not entry or (has_to_be_merged and not entry & CANONICAL):
            return ()
        return ((entry & ID_MASK) - 1,)

    def _merged(self, symbols: list[int]) -> Ids:
        kinds = self._kinds
        if not kinds:  # not before the first merge: a cold disk takes some milliseconds for it
            kinds = self._kinds = bytes(self._tables.read("kinds"))
        return tuple(merge(symbols, self._merges.__getitem__, kinds))


class BytePieces(Pieces):
    """Of a byte-level tokenizer: merges begin with bytes, or with characters where `borders` allows it."""

    def __init__(self, tables: Tables, plan: Plan) -> None:
        super().__init__(tables, plan)
        self._borders: Borders | None = None

    def _cut(self, piece: str) -> list[str]:
        return [piece] if piece.isascii() else self._get_borders().cut(piece)

    def _symbols(self, piece: str) -> list[int]:
        if piece.isascii():
            return list(map(self._plan.byte_ids.__getitem__, piece.encode()))
        return self._get_borders().symbols(piece)

    def _get_borders(self) -> Borders:
        if self._borders is None:
            read = self._tables.read
            joints = Joints(bytes(read("joints")))
            self._borders = Borders(bytes(read("borders")), joints, self._plan.byte_ids, self._merges)
        return self._borders


class CharPieces(Pieces):
    """Merges begin with characters, those that are no token as byte tokens, which are never merged."""

    def __init__(self, tables: Tables, plan: Plan) -> None:
        super().__init__(tables, plan)
        joints = Joints(bytes(tables.read("joints")))
        self._cut_at_joints: Callable[[str], list[str]] | None = joints.cut if plan.cuts_at_joints else None
        self._chars: Bounded[str, int] = Bounded(self._char, _CHARS_KEPT)

    def _cut(self, piece: str) -> list[str]:
        return self._cut_at_joints(piece) if self._cut_at_joints else [piece]

    def _symbols(self, piece: str) -> list[int]:
        ids = list(map(self._chars.__getitem__, piece))
        if min(ids) >= 0:
            return ids
        byte_ids, made, start = self._plan.byte_ids, [], 0
        for _ in range(ids.count(-1)):
            at = ids.index(-1, start)
            made += ids[start:at]
            made += [byte_ids[byte] for byte in piece[at].encode()]
            start = at + 1
        return made + ids[start:]

    def _char(self, char: str) -> int:
        """The id of a character, -1 if it is no token."""
        return (self._vocabulary.find(char.encode()) & ID_MASK) - 1
