"""Tables say what the library says: any text, any ids, every kind of tokenizer that is covered."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from kensho.runtime.text.tokenizer.build import build_tables
from kensho.runtime.text.tokenizer.build_words import byte_alphabet
from kensho.runtime.text.tokenizer.draws import Draws
from kensho.runtime.text.tokenizer.encode import Encoder, NeedsLibrary
from kensho.runtime.text.tokenizer.plan import parse_plan
from kensho.runtime.text.tokenizer.refuse import NotCovered
from kensho.runtime.text.tokenizer.self_check import check_tables
from kensho.runtime.text.tokenizer.tables import Tables

pytestmark = pytest.mark.real

PARTS = (
    "the", " the", "The end", "the end", " <table>", "</table>", "<", "<bos>", "<turn>user\n", "</turn>", "<0x41>",
    "\n", "\n\n", "\n\n\n\n", "\r\n", "  ", "    ", "\t", "\u2581", "\u2581\u2581", " \u2581x", "l'\u00e9t\u00e9",
    "e\u0301", "I'M", "we'LL", "'\u017f", "123456", "3.14", "\u0663", "\u65e5\u672c\u8a9e", "\u3042", "\u0e01\u0e33",
    "\ud55c\uad6d", "\U0001f469\u200d\U0001f4bb", "\u00a0", "\u3000", "\ufeff", "\u200b", "\0", "\x7f", "\x85",
    "\u0130", "\u1e9b\u0323", "\ue000", "\U0010ffff", "_self.x_", "==" * 40, "ab" * 80, "\u4e00\u4e8c\u4e09" * 30,
    " " * 70,
)  # fmt: skip
ANY_TEXT = st.text(max_size=30) | st.lists(st.sampled_from(PARTS) | st.text(max_size=4), max_size=12).map("".join)


@settings(max_examples=120, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_has_the_librarys_ids(pair: Any, text: str) -> None:
    try:
        found = pair.encoder.encode(text)
    except NeedsLibrary:
        assert not text.isascii()
        return
    assert found == pair.ids(text)


@settings(max_examples=60, deadline=None)
@given(ids=st.lists(st.integers(0, 3010) | st.integers(0, 300), max_size=40))
def test_any_ids_have_the_librarys_text(pair: Any, ids: list[int]) -> None:
    text = pair.decoder.decode(ids)
    assert text == pair.text(ids)
    text.encode()


def test_words_of_other_scripts_run_together_have_the_librarys_ids(pair: Any, foreign_words: list[str]) -> None:
    # Merges that take a part of a character: what is left of it meets its other neighbour (found by the benchmark).
    draws = Draws()
    for _ in range(3000):
        text = "".join(draws.one_of([" ", "", ""]) + draws.one_of(foreign_words) for _ in range(1 + draws.below(5)))
        assert pair.encoder.encode(text) == pair.ids(text)


def test_whole_pages_and_sources_have_the_librarys_ids(pair: Any, python_sources: list[str]) -> None:
    pages = [path.read_text() for path in sorted(Path(__file__).parents[4].glob("*.md"))]
    for text in [*pages, *python_sources]:
        assert pair.encoder.encode(text) == pair.ids(text)
        assert pair.decoder.decode(pair.ids(text)) == pair.text(pair.ids(text))


@pytest.mark.parametrize("kind", ["gemma", "gpt-2"])
def test_every_code_point_has_the_librarys_ids(kind: str, unchecked: Callable[[str], Any]) -> None:
    pair = unchecked(kind)
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    near = [char for char in points if ord(char) < 0x20000 or 0xE0000 <= ord(char) < 0xE1000]
    far = sorted(set(points) - set(near))  # ideographs, private or unassigned: alike but for their bytes
    texts = ["".join(f"x{char}1" for char in near[at : at + 64]) for at in range(0, len(near), 64)]
    texts += ["".join(far[at : at + 256]) for at in range(0, len(far), 256)]
    for text, expected in zip(texts, pair.library.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        assert pair.encoder.encode(text) == expected.ids


def test_texts_that_nfc_treats_differently_are_left_to_the_library(unchecked: Callable[[str], Any]) -> None:
    pair = unchecked("qwen")
    unassigned = next(chr(p) for p in range(0x870, 0x110000) if unicodedata.category(chr(p)) == "Cn")
    with pytest.raises(NeedsLibrary):
        pair.encoder.encode(f"a{unassigned}b")
    assert pair.encoder.encode("e\u0301") == pair.ids("\u00e9")


@pytest.mark.parametrize("kind", ["gemma", "gpt-2"])
def test_one_merge_less_is_noticed(kind: str, unchecked: Callable[[str], Any]) -> None:
    pair = unchecked(kind)
    document = json.loads(pair.library.to_str())
    vocabulary = list(document["model"]["vocab"])
    check_tables(pair.encoder, pair.decoder, pair.library, vocabulary)
    del document["model"]["merges"][7]
    other = type(pair.library).from_str(json.dumps(document))
    with pytest.raises(NotCovered, match="otherwise"):
        check_tables(pair.encoder, pair.decoder, other, vocabulary)


def test_the_same_tokenizer_gives_the_same_bytes(trained: Callable[[str], Any]) -> None:
    document = trained("gemma").to_str().encode()
    assert build_tables(document, {"a": 1}) == build_tables(document, {"a": 1})


def test_a_long_run_without_a_space_is_bounded(pair: Any) -> None:
    for text in ("a" * 200_000, "ab1." * 30_000, "\u4e00" * 50_000):
        assert pair.encoder.encode(text) == pair.ids(text)


def test_a_text_that_is_none_is_an_error_and_not_a_wrong_id(pair: Any) -> None:
    with pytest.raises(UnicodeEncodeError):
        pair.encoder.encode("a\ud800b \udcff")


def test_a_token_that_merges_would_not_make_is_one_only_as_a_whole_piece() -> None:
    # ignore_merges is for whole pieces: the same text within a piece, even where that is cut out, is merged.
    alphabet = byte_alphabet()

    def spelt(text: str) -> str:
        return "".join(alphabet[byte] for byte in text.encode())

    merges = [(alphabet[0xC3], alphabet[char.encode()[1]]) for char in "\u00e9\u00e8\u00ea\u00f1"]
    merges += [(spelt(a), spelt(b)) for a, b in ("\u00e9\u00e8", "\u00e8\u00ea")]
    merges += [(spelt("\u00e9"), spelt("\u00e8\u00ea"))]
    tokens = [*alphabet.values(), *(left + right for left, right in merges)]
    library = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges, ignore_merges=True))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    tables = Tables(memoryview(build_tables(library.to_str().encode(), {})), "test")
    whole, within = "\u00e9\u00e8\u00ea", "\u00e9\u00e8\u00ea\u00f1"
    for texts in ((whole, within, whole), (within, whole, within)):
        encoder = Encoder(tables, parse_plan(tables.meta["plan"]))
        for text in texts:
            assert encoder.encode(text) == library.encode(text).ids
    assert len(library.encode(whole).ids) == 1
    assert len(library.encode(within).ids) == 3
