"""kensho.delivery.chunking and safetensors_layout: cuts cover the file, and keep what did not change."""

import json
import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import ModelError
from kensho.base.ids import Digest, digest_of
from kensho.delivery.chunk_list import MAX_CHUNK_BYTES
from kensho.delivery.chunking import SMALL_FILE_BYTES, SMALL_TENSOR_BYTES, cut
from kensho.delivery.safetensors_layout import ReadAt


def reader(data: bytes) -> ReadAt:
    return lambda offset, length: data[offset : offset + length]


def chunks_of(data: bytes, path: str = "model.safetensors") -> list[bytes]:
    sizes = cut(path, len(data), reader(data))
    assert sum(sizes) == len(data)
    assert all(1 <= size <= MAX_CHUNK_BYTES for size in sizes)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [data[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def digests_of(data: bytes, path: str = "model.safetensors") -> list[Digest]:
    return [digest_of(chunk) for chunk in chunks_of(data, path)]


def safetensors(tensors: list[tuple[str, bytes]], metadata: dict[str, str] | None = None) -> bytes:
    table: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, data in tensors:
        table[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    header = json.dumps(table).encode()
    return struct.pack("<Q", len(header)) + header + b"".join(data for _, data in tensors)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


SIZES = st.lists(st.sampled_from([0, 1, 100, 3000, SMALL_TENSOR_BYTES - 1, SMALL_TENSOR_BYTES, 50_000]), max_size=30)


@settings(max_examples=50, deadline=None)
@given(SIZES, st.integers(0, 30), st.sampled_from([1, 500, SMALL_TENSOR_BYTES, 60_000]))
def test_inserting_a_tensor_keeps_the_other_chunks(sizes: list[int], at: int, size: int) -> None:
    tensors = [(f"layers.{number}.weight", noise(number, length)) for number, length in enumerate(sizes)]
    before = digests_of(safetensors(tensors))[1:]
    changed = [*tensors[:at], ("inserted", noise(99, size)), *tensors[at:]]
    after = set(digests_of(safetensors(changed))[1:])
    assert len([digest for digest in before if digest not in after]) <= 1  # the shared chunk it was put into


def test_a_large_tensor_is_cut_from_its_own_beginning() -> None:
    big = noise(1, 2 * MAX_CHUNK_BYTES + 5)
    chunks = chunks_of(safetensors([("norm", noise(2, 64)), ("big", big)]))
    assert chunks[1:] == [noise(2, 64), big[:MAX_CHUNK_BYTES], big[MAX_CHUNK_BYTES : 2 * MAX_CHUNK_BYTES], big[-5:]]


def test_an_edit_of_the_metadata_costs_the_header_only() -> None:
    tensors = [(f"layers.{number}.weight", noise(number, 30_000)) for number in range(9)]
    before, after = digests_of(safetensors(tensors)), digests_of(safetensors(tensors, {"note": "longer than before"}))
    assert before[0] != after[0]
    assert before[1:] == after[1:]


def test_small_tensors_share_chunks() -> None:
    tensors = [(f"layers.{number}.norm", noise(number, 512)) for number in range(1000)]
    assert 50 <= len(chunks_of(safetensors(tensors))) <= 300


def test_many_small_tensors_that_never_end_a_chunk_are_still_cut() -> None:
    names = [str(number) for number in range(400)]
    quiet = [name for name in names if len(chunks_of(safetensors([(name, b"a"), ("x", b"b")]))) == 2][:60]
    sizes = [len(chunk) for chunk in chunks_of(safetensors([(name, noise(1, 12_000)) for name in quiet]))]
    assert len(sizes) > 2
    assert max(sizes) <= 256 << 10


def test_an_unknown_format_is_cut_by_content() -> None:
    data = noise(3, 3 << 20)
    before = digests_of(data, "weights.bin")
    after = set(digests_of(b"inserted at the front" + data, "weights.bin"))
    assert 4 <= len(before) <= 48
    assert len([digest for digest in before if digest not in after]) <= 2


@pytest.mark.parametrize("size", [0, 1, SMALL_FILE_BYTES])
def test_a_small_file_is_one_chunk_and_an_empty_one_has_none(size: int) -> None:
    assert len(chunks_of(bytes(size), "config.json")) == (size > 0)


def header(text: str, tail: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text.encode() + tail


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data[:100], "header"),
        (lambda data: data[:5], "only 5 bytes"),
        (lambda data: b"", "only 0 bytes"),
        (lambda data: data + b"\0", "after its last tensor"),
        (lambda data: b"\xff" * 8 + data[8:], "header"),
        (lambda data: header("{]"), "not valid JSON"),
        (lambda data: header("[" * 50_000), "not valid JSON"),
        (lambda data: header("[]"), "not a JSON object"),
        (lambda data: header('{"a":1}'), "no description"),
        (lambda data: header('{"a":{"data_offsets":[0]}}'), "impossible offsets"),
        (lambda data: header('{"a":{"data_offsets":[-1,2]}}'), "impossible offsets"),
        (lambda data: header('{"a":{"data_offsets":[0,1.5]}}'), "impossible offsets"),
        (lambda data: header('{"a":{"data_offsets":[1,2]}}', b"ab"), "gap"),
        (lambda data: header('{"a":{"data_offsets":[0,2]},"b":{"data_offsets":[1,2]}}', b"ab"), "overlap"),
    ],
)
def test_a_truncated_or_odd_safetensors_file_is_refused_in_one_sentence(
    change: Callable[[bytes], bytes], word: str
) -> None:
    odd = change(safetensors([("a", noise(1, 300)), ("b", noise(2, 200))]))
    with pytest.raises(ModelError) as caught:
        cut("model.safetensors", len(odd), reader(odd))
    assert word in caught.value.message
    assert caught.value.message.startswith("model.safetensors")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_safetensors_are_cut_or_refused(data: bytes) -> None:
    for odd in (data, header(data.decode("latin-1"))):
        try:
            assert sum(cut("x.safetensors", len(odd), reader(odd))) == len(odd)
        except ModelError:
            continue
