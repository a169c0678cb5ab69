"""The envelope of a compiled graph: nothing is believed before its hash fits, and every size is bounded."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import Damaged
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import replace
from kensho.runtime.cache.graph_hashing import hash_section, verify_graph
from kensho.runtime.cache.header import (
    BLOCK_BYTES,
    FORMAT,
    FormSpeed,
    GraphHeader,
    KeyFields,
    SelfTestVector,
    differing_fields,
    dump_header,
    graph_key,
    join_digests,
    parse_header,
    read_header,
)

KEY = KeyFields(
    weights_digest=digest_of(b"weights"),
    config_digest=digest_of(b"config"),
    tokenizer_digest=digest_of(b"tokenizer"),
    engine_version="1.31.1",
    arch="x86_64",
    system="linux",
    cpu_features=("avx2", "avx512_vnni"),
    max_positions=4096,
)
GRAPH = b"graph" * 1000
WEIGHTS = bytes(range(256)) * (BLOCK_BYTES // 256) + b"tail"
HEADER = GraphHeader(
    model="m",
    version="1.0.0",
    schema=digest_of(b"schema"),
    key=KEY,
    form="u8",
    vocab_size=4096,
    kv_bytes_per_position=512,
    sections=(
        hash_section("graph", "graph.onnx", 0, memoryview(GRAPH), "graph"),
        hash_section("layers", "weights.bin", 0, memoryview(WEIGHTS)[:4096]),
        hash_section("table", "weights.bin", 4096, memoryview(WEIGHTS)[4096:], "table"),
    ),
    self_test=SelfTestVector((2, 5), (7,), (-1_500_000,), 1000),
    created="2026-01-02T03:04:05Z",
    compile_ms=812,
    speeds=(FormSpeed("u8", 13_000), FormSpeed("s8", 15_000)),
)
DATA = dump_header(HEADER)


def _signed(body: object) -> bytes:
    def dump(document: object) -> bytes:
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()

    return dump({"body": body, "sha256": hashlib.sha256(dump(body)).hexdigest()})


def _write(folder: Path) -> None:
    (folder / "graph.onnx").write_bytes(GRAPH)
    (folder / "weights.bin").write_bytes(WEIGHTS)
    (folder / "header.json").write_bytes(DATA)


def test_a_header_survives_the_round_trip() -> None:
    assert parse_header(DATA) == HEADER
    assert HEADER.size_bytes == len(GRAPH) + len(WEIGHTS)


@settings(max_examples=300)
@given(at=st.integers(0, len(DATA) - 1), flip=st.integers(1, 255))
def test_a_changed_byte_anywhere_is_refused(at: int, flip: int) -> None:
    changed = bytearray(DATA)
    changed[at] ^= flip
    with pytest.raises(Damaged):
        parse_header(bytes(changed))


@given(data=st.binary(max_size=200))
def test_no_bytes_crash_the_parser(data: bytes) -> None:
    with pytest.raises(Damaged):
        parse_header(data)


@pytest.mark.parametrize("data", [DATA + b" ", DATA + DATA, DATA[:-1], b"", b"[" * 100_000, b"null", b'{"body":1e999}'])
def test_other_spellings_and_hostile_json_are_refused(data: bytes) -> None:
    with pytest.raises(Damaged):
        parse_header(data)


def test_fields_are_checked_even_when_the_hash_fits() -> None:
    body = json.loads(DATA)["body"]
    hostile = [
        {**body, "extra": 1},
        {name: value for name, value in body.items() if name != "schema"},
        {**body, "compile_ms": -1},
        {**body, "compile_ms": True},
        {**body, "model": "x" * 1000},
        {**body, "schema": "../../etc/passwd"},
        {**body, "sections": [{**body["sections"][0], "file": "../weights.bin"}]},
        {**body, "sections": [body["sections"][0], {**body["sections"][1], "offset": 1}]},
        {**body, "sections": [body["sections"][0], {**body["sections"][1], "size_bytes": 2**52}]},
        {**body, "sections": body["sections"][:1]},
        {**body, "self_test": {**body["self_test"], "prompt_ids": []}},
        {**body, "key": {**body["key"], "cpu_features": [1]}},
    ]
    assert parse_header(_signed(body)) == HEADER
    for document in hostile:
        with pytest.raises(Damaged):
            parse_header(_signed(document))


def test_a_newer_minor_format_may_add_fields_and_a_newer_major_one_is_left_alone() -> None:
    body = json.loads(DATA)["body"]
    later = parse_header(_signed({**body, "format": [FORMAT[0], FORMAT[1] + 1], "gift": {"x": 1}}))
    assert replace(later, format=FORMAT) == HEADER
    for major, reason in ((FORMAT[0] + 1, "format_newer"), (0, "format_older")):
        with pytest.raises(Damaged) as caught:
            parse_header(_signed({**body, "format": [major, 0]}))
        assert caught.value.facts["reason"] == reason


def test_the_key_changes_with_every_field_and_names_what_changed() -> None:
    other = replace(KEY, engine_version="1.31.2", cpu_features=("avx2",))
    assert graph_key(other) != graph_key(KEY) == graph_key(replace(KEY))
    assert differing_fields(KEY, other) == ("engine_version", "cpu_features")


def test_one_shard_keeps_its_digest_and_several_depend_on_names_and_bytes() -> None:
    a, b = digest_of(b"a"), digest_of(b"b")
    assert join_digests({"model.safetensors": a}) == a
    pairs: list[dict[str, Digest]] = [{"x": a, "y": b}, {"x": b, "y": a}, {"x": a, "z": b}]
    assert len({join_digests(pair) for pair in pairs}) == 3
    assert join_digests({"y": b, "x": a}) == join_digests(pairs[0])


def test_an_untouched_entry_verifies_and_reports_its_bytes(tmp_path: Path) -> None:
    _write(tmp_path)
    seen: list[int] = []
    verify_graph(tmp_path, read_header(tmp_path), seen.append)
    assert sum(seen) == HEADER.size_bytes


@pytest.mark.parametrize(
    ("file", "at"), [("graph.onnx", 17), ("weights.bin", 0), ("weights.bin", 4096), ("weights.bin", BLOCK_BYTES + 3)]
)
def test_a_flipped_bit_of_a_file_is_found_and_its_block_named(tmp_path: Path, file: str, at: int) -> None:
    _write(tmp_path)
    data = bytearray((tmp_path / file).read_bytes())
    data[at] ^= 1
    (tmp_path / file).write_bytes(data)
    with pytest.raises(Damaged) as caught:
        verify_graph(tmp_path, HEADER)
    assert caught.value.facts["file"] == file


def test_a_shorter_longer_or_missing_file_is_found(tmp_path: Path) -> None:
    for change in (WEIGHTS[:-1], WEIGHTS + b"x", b""):
        _write(tmp_path)
        (tmp_path / "weights.bin").write_bytes(change)
        with pytest.raises(Damaged):
            verify_graph(tmp_path, HEADER)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(Damaged):
        verify_graph(tmp_path, HEADER)
    with pytest.raises(Damaged):
        read_header(tmp_path / "nowhere")
