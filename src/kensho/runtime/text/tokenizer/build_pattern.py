r"""Rewrite a pattern of the library's (Oniguruma) for `re` over class characters (`classes`). Pure, but for the scan.

Each part that matches one character (`\p{L}`, `[^\s\p{L}]`, `s` where case is ignored ...) is given to `scan`, which
asks the library which characters it matches; what it is made of need not be understood. The rest (alternatives,
groups, look-ahead, repetition) means the same in both. What is not known to is refused.
"""

import re
from collections.abc import Callable, Sequence

from kensho.base.structs import Struct
from kensho.runtime.text.tokenizer.classes import EXCEPTION, FIRST_CLASS, PAGE
from kensho.runtime.text.tokenizer.refuse import NotCovered

Scan = Callable[[str], bytes]
"""Of a pattern for one character: 0 or 1 for each of the 0x110000 code points."""
MAX_CLASSES = EXCEPTION - FIRST_CLASS
POINTS = 0x110000

_TOKEN = re.compile(
    r"(?P<group>\(\?i:|\(\?:|\(\?=|\(\?!|\((?!\?))|(?P<close>\))|(?P<bar>\|)"
    r"|(?P<repeat>(?:[?*+]|\{\d{1,3}(?:,\d{0,3})?\})\??|[?*+]\+)"
    r"|(?P<set>\[\^?(?:\\[pP]\{\^?\w+\}|\\[^pPxukhHb\d]|[^\\\[\]&])+\])"
    r"|(?P<escape>\\[pP]\{\^?\w+\}|\\[sSdDwWrnt]|\\[^\w\s])|(?P<literal>[^\\\[\]{}()|?*+.^$]|\.)"
)


class Rewritten(Struct):
    patterns: tuple[str, ...]
    class_of: bytes
    """For each code point its class character, ASCII itself."""


def rewrite(patterns: Sequence[str], scan: Scan, exceptions: Sequence[int]) -> Rewritten:
    """`exceptions`: code points that get the class EXCEPTION. Raises NotCovered."""
    tokens = [_parse(pattern) for pattern in patterns]
    parts = dict.fromkeys(atom for pattern in tokens for kind, atom in pattern if kind == "atom")
    matched = {atom: scan(atom) for atom in parts}
    class_of = _classes(list(matched.values()))
    sets = {atom: _set(found, class_of) for atom, found in matched.items()}
    made = bytearray(class_of)
    for point in exceptions:
        made[point] = EXCEPTION
    rewritten = ("".join(sets[text] if kind == "atom" else text for kind, text in pattern) for pattern in tokens)
    return Rewritten(tuple(rewritten), bytes(made))


def dump_classes(class_of: bytes) -> bytes:
    """The section that `classes.ClassMap` reads."""
    pages: dict[bytes, int] = {}
    index = [pages.setdefault(class_of[at : at + PAGE], len(pages)) for at in range(0, POINTS, PAGE)]
    return b"".join(number.to_bytes(2, "little") for number in index) + b"".join(pages)


def _parse(pattern: str) -> list[tuple[str, str]]:
    """Parts that match one character, as ("atom", pattern), and what stays as it is."""
    found: list[tuple[str, str]] = []
    case_ignored = [False]
    at = 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            raise NotCovered(f"the pattern has {pattern[at : at + 10]!r}")
        text, at = token.group(), token.end()
        if token["group"]:
            case_ignored.append(case_ignored[-1] or text == "(?i:")
            # Never a group that captures: `findall` would return it.
            found.append(("as is", "(?:" if text in ("(", "(?i:") else text))
        elif token["close"]:
            case_ignored.pop()
            if not case_ignored:
                raise NotCovered("the pattern's groups do not fit")
            found.append(("as is", text))
        elif token["bar"] or token["repeat"]:
            found.append(("as is", text))
        else:
            found.append(("atom", f"(?i:{text})" if case_ignored[-1] else text))
    return found


def _classes(matched: Sequence[bytes]) -> bytes:
    """For each code point one of the characters from FIRST_CLASS on: the same where all parts agree."""
    import numpy as np

    signature = np.zeros(POINTS, np.uint64)
    if len(matched) > 64:
        raise NotCovered(f"the pattern has {len(matched)} different parts")
    for bit, found in enumerate(matched):
        signature |= np.frombuffer(found, np.uint8).astype(np.uint64) << np.uint64(bit)
    known, first, number = np.unique(signature[FIRST_CLASS:], return_index=True, return_inverse=True)
    if len(known) > MAX_CLASSES:
        raise NotCovered(f"the pattern tells {len(known)} classes of characters apart")
    rank = np.empty(len(known), np.uint8)
    rank[np.argsort(first)] = np.arange(len(known), dtype=np.uint8) + FIRST_CLASS
    return bytes(range(FIRST_CLASS)) + rank[number.ravel()].tobytes()


def _set(found: bytes, class_of: bytes) -> str:
    """A set of `re` that matches these code points, as ASCII and class characters."""
    members = sorted({point for point in range(FIRST_CLASS) if found[point]} | _matched_classes(found, class_of))
    if not members:
        return "(?!)"
    ranges: list[list[int]] = []
    for member in members:
        if ranges and ranges[-1][1] == member - 1:
            ranges[-1][1] = member
        else:
            ranges.append([member, member])
    return "[" + "".join(f"\\x{low:02x}-\\x{high:02x}" if low < high else f"\\x{low:02x}" for low, high in ranges) + "]"


def _matched_classes(found: bytes, class_of: bytes) -> set[int]:
    import numpy as np

    is_found = np.frombuffer(found, np.uint8)[FIRST_CLASS:] == 1
    return set(np.unique(np.frombuffer(class_of, np.uint8)[FIRST_CLASS:][is_found]).tolist())
