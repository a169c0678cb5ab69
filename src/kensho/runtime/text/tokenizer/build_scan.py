"""Ask the library, code point by code point: what a part of a pattern matches, and where its NFC is not Python's."""

import sys
import unicodedata
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from kensho.runtime.text.tokenizer.refuse import NotCovered

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

_STEP = 4096
_SURROGATES = range(0xD800, 0xE000)
_HIT = "\x01"
_AROUND = ("{}", "a{}\u0301", "a\u0315{}\u0327\u0323{}\u0345", "\u1100{}\u11a8", "{}\u093c\u0338\u3099")
"""Contexts in which composition and the order of marks show (marks of classes 202, 216, 220, 230, 232, 240, 7, 8)."""


@lru_cache(maxsize=64)
def matched_points(pattern: str) -> bytes:
    """For each code point 1 if the pattern for one character matches it. 0.3 to 0.6 s, remembered."""
    from tokenizers import Regex, normalizers

    replace = normalizers.Replace(Regex(pattern), _HIT)
    found = bytearray(sys.maxunicode + 1)
    for start in range(0, len(found), _STEP):
        points = [point for point in range(start, start + _STEP) if point not in _SURROGATES]
        if not points:
            continue
        text = "".join(map(chr, points))
        replaced = replace.normalize_str(text)
        if len(replaced) != len(text):
            raise NotCovered(f"the pattern's part {pattern!r} does not match single characters")
        for point, char in zip(points, replaced, strict=True):
            found[point] = char == _HIT
    # What a hit looks like is asked for apart.
    found[ord(_HIT)] = normalizers.Replace(Regex(pattern), "").normalize_str(_HIT) == ""
    return bytes(found)


@cache
def nfc_exceptions() -> tuple[int, ...]:
    """Code points whose texts are left to the library: unassigned here, or composed or ordered otherwise by it.

    Text of characters that are assigned is composed alike by every later version of Unicode (Unicode Standard
    Annex 15, stability), so this list holds wherever Python's Unicode is not older than here.
    """
    from tokenizers import normalizers

    library = normalizers.NFC()
    odd = [point for point in range(sys.maxunicode + 1) if unicodedata.category(chr(point)) == "Cn"]
    known = sorted(set(range(sys.maxunicode + 1)) - set(odd) - set(_SURROGATES))
    for start in range(0, len(known), 64):
        odd += _different(library, known[start : start + 64])
    return tuple(sorted(odd))


def _different(library: "Normalizer", points: list[int]) -> list[int]:
    text = "|".join(around.replace("{}", chr(point)) for point in points for around in _AROUND)
    if library.normalize_str(text) == unicodedata.normalize("NFC", text):
        return []
    if len(points) == 1:
        return points
    half = len(points) // 2
    return _different(library, points[:half]) + _different(library, points[half:])
