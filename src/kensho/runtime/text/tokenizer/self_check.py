"""Before tables are used anywhere they must say what the library says: on 4 000 texts and all kinds of characters.

The texts are made of what the tokenizer itself knows (its tokens, its added tokens) and of what it may not (random
characters of twenty ranges, combining marks, odd spaces, cut words). One difference, and there are no tables.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kensho.runtime.text.tokenizer.decode import Decoder
from kensho.runtime.text.tokenizer.draws import Draws
from kensho.runtime.text.tokenizer.encode import Encoder, NeedsLibrary
from kensho.runtime.text.tokenizer.refuse import NotCovered

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TEXTS = 2000
ID_LISTS = 300
POINTS_A_TEXT = 32
_RANGES = (
    (0x20, 0x7F), (0x20, 0x7F), (0x20, 0x7F), (0x09, 0x0E), (0x80, 0x250), (0x300, 0x370), (0x370, 0x530),
    (0x590, 0x700), (0x900, 0xE80), (0x1100, 0x1200), (0x1E00, 0x2070), (0x2070, 0x2500), (0x2500, 0x2800),
    (0x3000, 0x3100), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xE000, 0xF900), (0xFB00, 0x10000), (0x1F300, 0x1FAFF),
    (0x20000, 0x20400),
)  # fmt: skip
_ALIKE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x20000, 0x3FFFF))
"""Ideographs and Hangul syllables."""
_PLAIN = ("the", " quick", " l'ete", " I'm", "we'll", " don't", "DON'T", " 2026", "1234567", ".", ", ", "\n", "\n\n",
          "\r\n", "\t", "  ", "   ", " \n ", "...", "()", "_x", "e\u0301", "\u200d", "\u00a0", "\ufeff", "\u2581",
          "<0x41>", "\u0130", "'\u017f", "''", "a" * 40, "=" * 70, "\0")  # fmt: skip


def check_tables(encoder: Encoder, decoder: Decoder, tokenizer: "Tokenizer", vocabulary: Sequence[str]) -> None:
    """Raises NotCovered where they differ. `vocabulary`: tokens as text. About 2 s."""
    texts = [*_texts(vocabulary), *_points(set(vocabulary))]
    for text, expected in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        try:
            found = encoder.encode(text)
        except NeedsLibrary:
            continue
        if found != expected.ids:
            raise NotCovered(f"the tables encode {text[:60]!r} otherwise than the library")
    draws = Draws()
    size = tokenizer.get_vocab_size() + 8
    lists = [[draws.below(size) for _ in range(1 + draws.below(24))] for _ in range(ID_LISTS)]
    low = [[draws.below(min(size, 300)) for _ in range(1 + draws.below(24))] for _ in range(ID_LISTS)]
    for ids in (*lists, *low, *(tokenizer.encode(text).ids for text in texts[:ID_LISTS])):
        if decoder.decode(ids) != tokenizer.decode(ids, skip_special_tokens=True):
            raise NotCovered(f"the tables decode {ids[:12]} otherwise than the library")


def _texts(vocabulary: Sequence[str]) -> Iterator[str]:
    draws = Draws()
    # Where tokens of several bytes a character meet, merges of parts of characters are at work (`borders`).
    foreign = [token for token in vocabulary if not token.isascii()]
    for _ in range(TEXTS if foreign else 0):
        yield "".join(draws.one_of(foreign) for _ in range(2 + draws.below(6)))
    for number in range(TEXTS):
        parts = []
        for _ in range(1 + draws.below(24)):
            kind = draws.below(8)
            if kind < 3 and vocabulary:
                parts.append(draws.one_of(vocabulary))
            elif kind < 6:
                parts.append(draws.one_of(_PLAIN))
            else:
                low, high = _RANGES[number % len(_RANGES)] if kind == 6 else draws.one_of(_RANGES)
                parts.append("".join(chr(low + draws.below(high - low)) for _ in range(1 + draws.below(6))))
        yield "".join(parts)


def _points(known: set[str]) -> Iterator[str]:
    """Every assigned code point after a letter, before a digit, after a space and twice in a row.

    Of the 108,000 ideographs and Hangul, which nothing tells apart, those that are tokens and every sixteenth other.
    """
    points = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) not in ("Cn", "Cs", "Co")]
    left_out = {char for char in points if _is_alike(ord(char)) and ord(char) % 16 and char not in known}
    points = [char for char in points if char not in left_out]
    for start in range(0, len(points), POINTS_A_TEXT):
        yield "".join(f"a{char}1 {char}{char}'" for char in points[start : start + POINTS_A_TEXT])


def _is_alike(point: int) -> bool:
    return any(first <= point <= last for first, last in _ALIKE)
