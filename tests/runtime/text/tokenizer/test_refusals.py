"""What tables do not cover is refused by a reason in words; what changes nothing is proven and accepted."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kensho.runtime.text.tokenizer.build_pattern import rewrite
from kensho.runtime.text.tokenizer.recipe import read_recipe
from kensho.runtime.text.tokenizer.refuse import NotCovered

MARK = "\u2581"
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
FALLBACK = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ],
}  # fmt: skip
GEMMA: Mapping[str, Any] = {
    "normalizer": REPLACE,
    "pre_tokenizer": SPLIT,
    "post_processor": None,
    "decoder": FALLBACK,
    "added_tokens": [],
    "model": {"type": "BPE", "byte_fallback": True, "dropout": None},
}
BYTES: Mapping[str, Any] = GEMMA | {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "decoder": {"type": "ByteLevel"},
}


def split(pattern: object, behavior: str = "Isolated", **more: object) -> dict[str, object]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False, **more}


def then_bytes(*steps: object, **options: object) -> dict[str, object]:
    last = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False, **options}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, last]}}


def token(**options: object) -> dict[str, object]:
    return {"added_tokens": [{"content": "<x>", "lstrip": False, "rstrip": False, "single_word": False, **options}]}


@pytest.mark.parametrize(
    ("base", "change", "reason"),
    [
        (GEMMA, {"model": {"type": "Unigram"}}, "Unigram"),
        (GEMMA, {"model": {"type": "WordPiece"}}, "WordPiece"),
        (GEMMA, {"model": GEMMA["model"] | {"dropout": 0.1}}, "dropout"),
        (GEMMA, {"model": GEMMA["model"] | {"continuing_subword_prefix": "##"}}, "continuing_subword_prefix"),
        (GEMMA, {"model": GEMMA["model"] | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        (GEMMA, {"model": GEMMA["model"] | {"byte_fallback": False}}, "no byte fallback"),
        (GEMMA, {"model": GEMMA["model"] | {"ignore_merges": True}}, "ignore_merges"),
        (GEMMA, {"normalizer": {"type": "NFKC"}}, "normaliser NFKC"),
        (GEMMA, {"normalizer": {"type": "Lowercase"}}, "normaliser Lowercase"),
        (GEMMA, {"normalizer": REPLACE | {"pattern": {"Regex": " +"}}}, "of a pattern"),
        (GEMMA, {"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        (GEMMA, {"pre_tokenizer": split({"Regex": " "})}, "Split without ByteLevel"),
        (GEMMA, {"post_processor": {"type": "Other"}}, "post-processor Other"),
        (GEMMA, {"decoder": None}, "decoder none"),
        (GEMMA, {"decoder": {"type": "ByteLevel"}}, "not that of its pre-tokenizer"),
        (GEMMA, {"decoder": {"type": "WordPiece"}}, "decoder WordPiece"),
        (GEMMA, token(lstrip=True), "lstrip"),
        (GEMMA, token(rstrip=True), "rstrip"),
        (GEMMA, token(single_word=True), "single_word"),
        (BYTES, {"decoder": FALLBACK}, "not that of its pre-tokenizer"),
        (BYTES, then_bytes(), "cuts nowhere"),
        (BYTES, then_bytes(split({"Regex": "a"}, "Removed")), "Removed"),
        (BYTES, then_bytes(split({"Regex": "a"}, invert=True)), "inverted"),
        (BYTES, then_bytes(split({"Regex": "a"}), add_prefix_space=True), "cut already"),
        (BYTES, then_bytes({"type": "Digits", "individual_digits": True}), "Digits"),
    ],
)  # fmt: skip
def test_what_is_not_covered_is_refused_by_name(
    base: Mapping[str, Any], change: Mapping[str, Any], reason: str
) -> None:
    assert read_recipe(base)
    with pytest.raises(NotCovered, match=reason) as caught:
        read_recipe({**base, **change})
    assert caught.value.advice


@pytest.mark.parametrize(
    ("normalizers", "is_accepted"),
    [
        ([REPLACE], True),
        ([{"type": "Prepend", "prepend": MARK}, REPLACE], True),
        ([REPLACE, {"type": "NFC"}], True),
        ([{"type": "NFC"}], False),
        ([REPLACE, {"type": "Prepend", "prepend": " "}], False),
        ([REPLACE, {"type": "Replace", "pattern": {"String": "x"}, "content": "a b"}], False),
        ([REPLACE | {"content": " " + MARK}], False),
        ([REPLACE | {"pattern": {"String": "  "}}], False),
    ],
)
def test_a_split_that_finds_nothing_is_accepted_only_if_that_is_certain(
    normalizers: list[dict[str, object]], is_accepted: bool
) -> None:
    document = GEMMA | {"normalizer": {"type": "Sequence", "normalizers": normalizers}}
    if is_accepted:
        assert read_recipe(document).patterns == ()
        return
    with pytest.raises(NotCovered, match="Split"):
        read_recipe(document)


def scan(pattern: str) -> bytes:
    return bytes(0x110000)


@pytest.mark.parametrize(
    "pattern",
    [r"\bx", r"(?<=a)b", r"a$", r"^a", r"\Ga", r"[a&&b]", r"[[:alpha:]]", r"(?i)a", r"\1", r"(?>a)", r"a)", r"\x41"],
)  # fmt: skip
def test_a_pattern_that_is_not_understood_is_refused(pattern: str) -> None:
    with pytest.raises(NotCovered, match="pattern"):
        rewrite([pattern], scan, [])


@pytest.mark.real
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d["model"]["merges"].append(d["model"]["merges"][0]), "twice"),
        (lambda d: d["model"]["vocab"].update({"zz": 900_000}), "ids up to"),
        (lambda d: d["added_tokens"][0].update(lstrip=True), "lstrip"),
        (lambda d: d["model"]["merges"].append(["<0x41>", "<0x42>"]), "byte tokens|cannot be"),
    ],
    ids=["double merge", "gap", "lstrip", "byte merge"],
)
def test_a_vocabulary_with_something_odd_is_refused(
    change: Callable[[dict[str, Any]], None], reason: str, trained: Callable[[str], Any]
) -> None:
    from kensho.runtime.text.tokenizer.build import build_tables

    document = json.loads(trained("gemma").to_str())
    if "<0x41><0x42>" not in document["model"]["vocab"]:
        document["model"]["vocab"]["<0x41><0x42>"] = len(document["model"]["vocab"])
    change(document)
    with pytest.raises(NotCovered, match=reason):
        build_tables(json.dumps(document).encode(), {})
