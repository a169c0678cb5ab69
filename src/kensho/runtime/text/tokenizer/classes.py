r"""Cut a text by the patterns of a byte-level tokenizer, with `re` and no Unicode tables but the library's own.

`re` has no `\p{L}`, and two programs rarely have the same version of Unicode. So at build the library was asked which
characters each part of the patterns matches; characters that no part tells apart are one class, written as one
character from U+0080 on, and the patterns were rewritten for such texts. ASCII is its own class: an ASCII text is cut
as it is, any other is translated first, 40 ns a character.
"""

import re
from collections.abc import Sequence
from itertools import accumulate

from kensho.runtime.text.tokenizer.bounded import Bounded
from kensho.runtime.text.tokenizer.refuse import TablesRefused

FIRST_CLASS = 0x80
EXCEPTION = 0xFF
"""Class of the characters that Python's Unicode and the library's treat differently: their texts go to the library."""
PAGE = 256
PAGES = 0x110000 // PAGE
_KEPT = 8192


class ClassMap:
    """The class of each character. The section: u16 numbers of pages, then the pages."""

    def __init__(self, data: memoryview) -> None:
        if len(data) < 2 * PAGES or (len(data) - 2 * PAGES) % PAGE:
            raise TablesRefused("its classes are of no possible size")
        self._index = data[: 2 * PAGES].cast("H")
        self._pages = data[2 * PAGES :]
        if max(self._index) * PAGE >= len(self._pages):
            raise TablesRefused("a page of its classes is missing")
        self._classes: Bounded[int, int] = Bounded(self._look, _KEPT)

    def classes(self, text: str) -> str:
        """One character for each of the text's."""
        return text if text.isascii() else text.translate(self._classes)

    def _look(self, point: int) -> int:
        return point if point < FIRST_CLASS else self._pages[self._index[point >> 8] * PAGE + (point & 0xFF)]


class PatternCutter:
    """Cuts a text by one pattern after the other, each within the pieces of the one before."""

    def __init__(self, patterns: Sequence[str], class_map: ClassMap) -> None:
        """`patterns` as `build_pattern` rewrote them. Raises TablesRefused."""
        self._class_map = class_map
        self._patterns = [compiled(pattern) for pattern in patterns]
        if not self._patterns:
            raise TablesRefused("it has no pattern")

    def cut(self, text: str) -> list[str]:
        """The pieces; together they are the text."""
        pieces = self._cut_by(self._patterns[0], text)
        for pattern in self._patterns[1:]:
            pieces = [part for piece in pieces for part in self._cut_by(pattern, piece)]
        return pieces

    def _cut_by(self, pattern: re.Pattern[str], text: str) -> list[str]:
        classes = self._class_map.classes(text)
        found: list[str] = pattern.findall(classes)
        if sum(map(len, found)) != len(text):
            ends = _all_ends(pattern, classes)
        elif classes is text:
            return found
        else:
            ends = list(accumulate(map(len, found)))
        return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def compiled(pattern: str) -> re.Pattern[str]:
    """Raises TablesRefused for a pattern that cannot cut a text."""
    try:
        made = re.compile(pattern, re.DOTALL)
    except (re.error, RecursionError, OverflowError) as error:
        raise TablesRefused("one of its patterns is none") from error
    if made.groups or made.match(""):
        raise TablesRefused("one of its patterns has a group or matches nothing at all")
    return made


def _all_ends(pattern: re.Pattern[str], classes: str) -> list[int]:
    """Where the matches end, and what lies between them."""
    ends: list[int] = []
    at = 0
    for found in pattern.finditer(classes):
        start, end = found.span()
        if start != at:
            ends.append(start)
        ends.append(end)
        at = end
    if at != len(classes):
        ends.append(len(classes))
    return ends
