"""Find added tokens in a text: leftmost, then longest, never overlapping, as the library's Aho-Corasick does. Pure.

A place can only begin a token if its first two characters begin one; for those the lengths are known. Thousands of
tokens (runs of line ends, tags) so cost nothing where none is.
"""

import re
import struct
from collections.abc import Sequence

from kensho.base.structs import Struct
from kensho.runtime.text.tokenizer.refuse import TablesRefused

_COUNT = struct.Struct("<II")
OPENER = 2
"""Characters."""


class AddedToken(Struct):
    text: str
    id: int


class AddedTokens:
    """A set of tokens to look for."""

    def __init__(self, tokens: Sequence[AddedToken]) -> None:
        self._ids = {token.text: token.id for token in tokens}
        lengths: dict[str, set[int]] = {}
        for text in self._ids:
            lengths.setdefault(text[:OPENER], set()).add(len(text))
        self._lengths = {opener: sorted(found, reverse=True) for opener, found in lengths.items()}
        # A token of one character opens with itself alone, so the longer ones are tried first.
        self._begin = re.compile(f"[{''.join(map(re.escape, sorted({text[0] for text in self._ids})))}]")

    def split(self, text: str) -> list[str | int]:
        """The text between the tokens, and the tokens' ids, in order. No empty parts."""
        parts: list[str | int] = []
        at, last = 0, 0
        while found := self._begin.search(text, at):
            at = found.start()
            length = self._length_at(text, at)
            if not length:
                at += 1
                continue
            if last < at:
                parts.append(text[last:at])
            parts.append(self._ids[text[at : at + length]])
            at = last = at + length
        if last < len(text):
            parts.append(text[last:])
        return parts

    def _length_at(self, text: str, at: int) -> int:
        for opener in (text[at : at + OPENER], text[at]):
            for length in self._lengths.get(opener, ()):
                if text[at : at + length] in self._ids:
                    return length
        return 0


def dump_added(raw: Sequence[AddedToken], normalized: Sequence[AddedToken]) -> bytes:
    """The section: how many are looked for before and after normalising, their ids, their texts ended by NUL."""
    tokens = [*raw, *normalized]
    ids = struct.pack(f"<{len(tokens)}I", *(token.id for token in tokens))
    return _COUNT.pack(len(raw), len(normalized)) + ids + b"".join(token.text.encode() + b"\0" for token in tokens)


def parse_added(data: memoryview) -> tuple[AddedTokens | None, AddedTokens | None]:
    """What to look for before and after normalising. Raises TablesRefused."""
    try:
        first, second = _COUNT.unpack_from(data)
        ids = struct.unpack_from(f"<{first + second}I", data, _COUNT.size)
        texts = bytes(data[_COUNT.size + 4 * len(ids) :]).decode().split("\0")[:-1]
    except (struct.error, ValueError, OverflowError, MemoryError) as error:
        raise TablesRefused("its added tokens are not readable") from error
    if len(texts) != len(ids) or not all(texts):
        raise TablesRefused("its added tokens are not complete")
    tokens = list(map(AddedToken, texts, ids))
    return _some(tokens[:first]), _some(tokens[first:])


def _some(tokens: Sequence[AddedToken]) -> AddedTokens | None:
    return AddedTokens(tokens) if tokens else None
