"""The file of tables: what is damaged, cut, foreign or of another format is refused by name, never used."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from kensho.runtime.text.tokenizer.decode import Decoder
from kensho.runtime.text.tokenizer.encode import Encoder
from kensho.runtime.text.tokenizer.lookup import Merges, Vocabulary
from kensho.runtime.text.tokenizer.plan import parse_plan
from kensho.runtime.text.tokenizer.refuse import TablesRefused
from kensho.runtime.text.tokenizer.tables import BLOCK_BYTES, SECTIONS, Tables, dump_tables

EMPTY = dict.fromkeys(SECTIONS[1:], b"")


def tables(**sections: bytes) -> Tables:
    return Tables(memoryview(dump_tables({"a": 1}, EMPTY | sections)), "test")


def test_what_was_written_is_read_section_by_section(tmp_path: Path) -> None:
    contents = {
        name: os.urandom(size) for size, name in zip((0, 1, 4095, 4096, 4097, 9000), SECTIONS[1:], strict=False)
    }
    (tmp_path / "t").write_bytes(dump_tables({"name": "x"}, EMPTY | contents))
    opened = Tables.open(tmp_path / "t")
    assert opened.meta == {"name": "x"}
    assert {name: bytes(opened.read(name)) for name in contents} == contents


def test_nothing_but_the_first_blocks_is_read_by_a_load(tmp_path: Path) -> None:
    opened = tables(blob=os.urandom(200_000))
    assert sum(opened.is_checked) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "no file of tokenizer tables"),
        (lambda data: b"GGUF" + data[4:], "no file of tokenizer tables"),
        (lambda data: data[:8] + struct.pack("<I", 99) + data[12:], "format 99"),
        (lambda data: data[:100] + b"\xff" + data[101:], "header is damaged"),
        (lambda data: data[:-BLOCK_BYTES], "its header says"),
        (lambda data: data + bytes(BLOCK_BYTES), "its header says"),
        (lambda data: data[: BLOCK_BYTES + 1] + b"\xff" + data[BLOCK_BYTES + 2 :], "list of sums"),
        (lambda data: data[: 2 * BLOCK_BYTES] + b"[" + data[2 * BLOCK_BYTES + 1 :], "block 2 is damaged"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_refused_by_name(change: Callable[[bytes], bytes], reason: str) -> None:
    data = change(dump_tables({"a": 1}, EMPTY | {"blob": bytes(9000)}))
    with pytest.raises(TablesRefused, match=reason):
        Tables(memoryview(data), "test")


def test_a_section_outside_the_file_is_refused_even_with_right_sums() -> None:
    data = bytearray(dump_tables({"a": 1}, EMPTY))
    for at, value in ((32, 1 << 60), (40, 1 << 40), (48, 1 << 62)):
        made = bytearray(data)
        struct.pack_into("<Q", made, at, value)
        struct.pack_into("<I", made, BLOCK_BYTES - 4, crc32(bytes(made[: BLOCK_BYTES - 4])))
        with pytest.raises(TablesRefused):
            Tables(memoryview(bytes(made)), "test")


def test_what_is_no_plain_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "empty"):
        with pytest.raises(TablesRefused, match="no file"):
            Tables.open(tmp_path / name)
    for name in ("link", "absent"):
        with pytest.raises(OSError):
            Tables.open(tmp_path / name)


def test_slots_that_are_all_taken_end_a_search() -> None:
    full = tables(vocab=struct.pack("<Q", 1 << 32 | 1) * 2048, offsets=bytes(8), kinds=b"\1")
    with pytest.raises(TablesRefused, match="no end"):
        Vocabulary(full).find(b"x")
    with pytest.raises(TablesRefused, match="no end"):
        Merges(tables(merges=struct.pack("<QQ", 1 << 60, 1) * 2048))[1, 2]


@pytest.mark.parametrize(
    "sections",
    [
        {"vocab": bytes(24), "offsets": bytes(8), "kinds": b"\1"},
        {"vocab": bytes(13), "offsets": bytes(8), "kinds": b"\1"},
        {"vocab": bytes(64), "offsets": bytes(7), "kinds": b"\1"},
        {"vocab": bytes(64), "offsets": bytes(8), "kinds": b"\1\1"},
    ],
    ids=["no power of two", "odd slots", "odd offsets", "lengths differ"],
)
def test_sections_that_do_not_fit_each_other_are_refused(sections: dict[str, bytes]) -> None:
    with pytest.raises(TablesRefused):
        Vocabulary(tables(**sections))


def test_a_token_that_lies_outside_is_refused() -> None:
    odd = Vocabulary(tables(vocab=bytes(64), offsets=struct.pack("<3I", 4, 2, 900), kinds=b"\1\1", blob=b"abc"))
    for token in (0, 1):
        with pytest.raises(TablesRefused, match="outside"):
            odd.text(token)
    assert odd.text(7) == odd.text(-1) == b""


@pytest.mark.parametrize(
    "kind", [pytest.param("gemma", marks=pytest.mark.real), pytest.param("qwen", marks=pytest.mark.real)]
)
def test_a_flipped_bit_anywhere_is_a_refusal_or_no_difference(kind: str, unchecked: Callable[[str], Any]) -> None:
    pair = unchecked(kind)
    rng = random.Random(5)
    texts = [
        "The quick (brown) fox, l'\u00e9t\u00e9 \u65e5\u672c!\n\n<bos>def f(x): return 42 " + "zq" * 9,
        "\u4e00" * 9,
    ]
    expected = [pair.ids(text) for text in texts]
    refused = 0
    for _ in range(600):
        data = bytearray(pair.data)
        at = rng.randrange(len(data)) if rng.random() < 0.7 else rng.randrange(6 * BLOCK_BYTES)
        data[at] ^= 1 << rng.randrange(8)
        try:
            opened = Tables(memoryview(bytes(data)), "damaged")
            plan = parse_plan(opened.meta["plan"])
            encoder, decoder = Encoder(opened, plan), Decoder(opened, plan)
            assert [encoder.encode(text) for text in texts] == expected
            assert [decoder.decode(ids) for ids in expected] == [pair.text(ids) for ids in expected]
        except TablesRefused as error:
            refused += 1
            assert error.reason
    assert refused > 50


@pytest.mark.real
def test_a_plan_of_another_kind_is_refused(unchecked: Callable[[str], Any]) -> None:
    plan = Tables(memoryview(unchecked("gemma").data), "test").meta["plan"]
    assert isinstance(plan, dict)
    for name in plan:
        for odd in (None, -1, 1 << 40, "zz" * 600_000, ["x", 3], {"a": 1}):
            with pytest.raises(TablesRefused):
                parse_plan(plan | {name: odd})
    with pytest.raises(TablesRefused):
        parse_plan([])
