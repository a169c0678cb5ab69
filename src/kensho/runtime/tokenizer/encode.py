"""Text -> token ids, by the tables alone: the same ids as the `tokenizers` library, text for text.

    encoder = Encoder(tables)
    ids = encoder.encode("Bonjour <eos>")

About 1 us a word once it was seen, 5 us for a new one; nothing is imported but `re`, and `unicodedata` for NFC. Caches
are bounded (4 MB together). Texts that only the library can encode raise NeedsLibrary.
"""

from collections.abc import Callable
from itertools import chain

from kensho.runtime.tokenizer.added_tokens import parse_added
from kensho.runtime.tokenizer.bounded import Bounded
from kensho.runtime.tokenizer.classes import EXCEPTION, ClassMap, PatternCutter, compiled
from kensho.runtime.tokenizer.cuts import Joints
from kensho.runtime.tokenizer.lookup import CANONICAL, ID_MASK, Merges, Vocabulary
from kensho.runtime.tokenizer.merge import merge
from kensho.runtime.tokenizer.plan import Plan
from kensho.runtime.tokenizer.refuse import TablesRefused
from kensho.runtime.tokenizer.tables import Tables

MAX_KEPT_CHARS = 64
"""Longer pieces are rarely seen again."""
_PIECES_KEPT = 8192
_CHARS_KEPT = 4096
_EXCEPTION = chr(EXCEPTION)

Ids = tuple[int, ...]


class NeedsLibrary(Exception):
    """The text has a character that Python's Unicode and the library's know differently."""


class Encoder:
    """Safe to use from several threads: nothing of it changes but its caches."""

    def __init__(self, tables: Tables, plan: Plan) -> None:
        """Raises TablesRefused. Compiles patterns at the first use, not here."""
        self._plan = plan
        self._vocabulary = Vocabulary(tables)
        self._value_of = Merges(tables).__getitem__
        self._kinds = tables.read("kinds")
        self._raw_tokens, self._normal_tokens = parse_added(tables.read("added"))
        self._joints = Joints(bytes(tables.read("joints")))
        self._class_map = ClassMap(tables.read("classes"))
        self._normalizers = [_normalizer(step, self._class_map) for step in plan.normalizers]
        self._cut: Callable[[str], list[str]] | None = None
        is_bytes = plan.symbols == "bytes"
        make: Callable[[str], Ids] = self._bytes_piece if is_bytes else self._chars_piece
        self._pieces: Bounded[str, Ids] = Bounded(make, _PIECES_KEPT)
        self._make_piece = make
        self._chars: Bounded[str, int] = Bounded(self._char, _CHARS_KEPT)

    def encode(self, text: str) -> list[int]:
        """The ids, none added around them. Raises NeedsLibrary, TablesRefused (damaged), UnicodeEncodeError."""
        ids: list[int] = []
        is_first = True
        for part in self._raw_tokens.split(text) if self._raw_tokens else [text] if text else []:
            if isinstance(part, int):
                ids.append(part)
            else:
                self._encode_part(part, ids, is_first=is_first)
            is_first = False
        return ids

    def _encode_part(self, text: str, ids: list[int], *, is_first: bool) -> None:
        for normalize in self._normalizers:
            text = normalize(text)
        if self._normal_tokens is None:
            self._encode_between(text, ids, is_first=is_first)
            return
        for part in self._normal_tokens.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                self._encode_between(part, ids, is_first=is_first)
            is_first = False

    def _encode_between(self, text: str, ids: list[int], *, is_first: bool) -> None:
        plan = self._plan
        if plan.space:
            text = text.replace(" ", plan.space)
        if (plan.lead_when == "always" or (plan.lead_when == "first" and is_first)) and text[:1] != plan.lead:
            text = plan.lead + text if text else text
        cut = self._cut or self._make_cut()
        pieces = cut(text)
        if max(map(len, pieces), default=0) <= MAX_KEPT_CHARS:
            ids.extend(chain.from_iterable(map(self._pieces.__getitem__, pieces)))
            return
        for piece in pieces:
            ids.extend(self._pieces[piece] if len(piece) <= MAX_KEPT_CHARS else self._make_piece(piece))

    def _make_cut(self) -> Callable[[str], list[str]]:
        plan = self._plan
        if plan.symbols == "bytes":
            self._cut = PatternCutter(plan.patterns, self._class_map).cut
        elif plan.patterns:
            self._cut = compiled(plan.patterns[0]).findall
        else:
            self._cut = self._joints.cut if plan.cuts_at_joints else _no_cut
        return self._cut

    def _bytes_piece(self, piece: str) -> Ids:
        data = piece.encode()
        entry = self._vocabulary.find(data) if len(piece) <= self._plan.max_token_chars else 0
        if entry & CANONICAL:
            return ((entry & ID_MASK) - 1,)
        byte_ids = self._plan.byte_ids
        return tuple(merge([byte_ids[byte] for byte in data], self._value_of, self._kinds))

    def _chars_piece(self, piece: str) -> Ids:
        if len(piece) <= self._plan.max_token_chars:
            entry = self._vocabulary.find(piece.encode())
            if entry & CANONICAL:
                return ((entry & ID_MASK) - 1,)
        if self._plan.cuts_at_joints:
            parts = self._joints.cut(piece)
            if len(parts) > 1:
                return tuple(chain.from_iterable(map(self._whole, parts)))
        return self._merged_chars(piece)

    def _whole(self, piece: str) -> Ids:
        """Of a piece that has no joint left to be cut at."""
        if len(piece) > MAX_KEPT_CHARS:
            return self._merged_chars(piece)
        # The same cache: a piece has the same ids wherever it was cut.
        found = self._pieces.get(piece)
        if found is None:
            found = self._pieces[piece]
        return found

    def _merged_chars(self, piece: str) -> Ids:
        ids = list(map(self._chars.__getitem__, piece))
        if min(ids, default=0) < 0:
            ids = self._with_bytes(piece, ids)
        return tuple(merge(ids, self._value_of, self._kinds))

    def _with_bytes(self, piece: str, ids: list[int]) -> list[int]:
        """Byte tokens in the place of each -1."""
        byte_ids, made, start = self._plan.byte_ids, [], 0
        for _ in range(ids.count(-1)):
            at = ids.index(-1, start)
            made += ids[start:at]
            made += [byte_ids[byte] for byte in piece[at].encode()]
            start = at + 1
        return made + ids[start:]

    def _char(self, char: str) -> int:
        """The id of a character, -1 if it is no token."""
        entry = self._vocabulary.find(char.encode())
        return (entry & ID_MASK) - 1


def _no_cut(text: str) -> list[str]:
    return [text] if text else []


def _normalizer(step: tuple[str, ...], class_map: ClassMap) -> Callable[[str], str]:
    match step:
        case ("replace", old, new):
            return lambda text: text.replace(old, new)
        case ("prepend", lead):
            return lambda text: lead + text if text else text
        case ("nfc",):
            return lambda text: _nfc(text, class_map)
    raise TablesRefused("a normaliser of it is not known")


def _nfc(text: str, class_map: ClassMap) -> str:
    if text.isascii():
        return text
    import unicodedata

    if _EXCEPTION in class_map.classes(text):
        raise NeedsLibrary
    return unicodedata.normalize("NFC", text)
