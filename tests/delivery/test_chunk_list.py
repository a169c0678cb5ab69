"""kensho.delivery.chunk_list: one list has one document; no document does anything but parse or be refused."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import TrustError
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.delivery.chunk_list import (
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    MAX_PACK_BYTES,
    Chunk,
    ChunkList,
    Encoding,
    dump_chunk_list,
    parse_chunk_records,
)
from kensho.delivery.manifest import FileEntry, parse_chunk_list

PACKS = [digest_of(bytes([number])) for number in range(3)]


@st.composite
def chunk(draw: st.DrawFn) -> Chunk:
    encoding: Encoding = draw(st.sampled_from(["raw", "zstd", "planes2+zstd"]))
    size = draw(st.integers(2, MAX_CHUNK_BYTES // 2)) * 2
    encoded = size if encoding == "raw" else draw(st.integers(1, size - 1))
    offset = draw(st.integers(0, MAX_PACK_BYTES - encoded))
    return Chunk(digest_of(str(size).encode()), size, draw(st.sampled_from(PACKS)), offset, encoded, encoding)


CHUNKS = st.lists(chunk(), max_size=6).map(lambda chunks: ChunkList(tuple(chunks)))
ONE = Chunk(digest_of(b"x"), 1000, PACKS[0], 0, 10, "zstd")


@settings(max_examples=50, deadline=None)
@given(CHUNKS)
def test_a_dumped_list_comes_back(chunks: ChunkList) -> None:
    assert parse_chunk_records(dump_chunk_list(chunks), chunks.size_bytes) == chunks


def test_a_file_of_no_bytes_has_an_empty_list() -> None:
    data = dump_chunk_list(ChunkList(()))
    assert parse_chunk_records(data, 0) == ChunkList(())
    with pytest.raises(TrustError):
        parse_chunk_records(data, 1)


@settings(max_examples=60, deadline=None)
@given(CHUNKS, st.integers(0, 10**6), st.binary(max_size=4), st.integers(0, 4))
def test_a_damaged_document_gives_its_one_list_or_a_trust_error(
    chunks: ChunkList, at: int, junk: bytes, cut: int
) -> None:
    data = dump_chunk_list(chunks)
    at %= len(data)
    damaged = data[:at] + junk + data[at + cut :]
    try:
        parsed = parse_chunk_records(damaged, chunks.size_bytes)
    except TrustError:
        return
    assert dump_chunk_list(parsed) == damaged


@pytest.mark.parametrize(
    "change",
    [
        lambda c: replace(c, size_bytes=0),
        lambda c: replace(c, size_bytes=MAX_CHUNK_BYTES + 1),
        lambda c: replace(c, encoded_bytes=0),
        lambda c: replace(c, encoded_bytes=c.size_bytes),
        lambda c: replace(c, encoded_bytes=2**32 - 1),
        lambda c: replace(c, pack_offset=MAX_PACK_BYTES - 9),
        lambda c: replace(c, pack_offset=2**32 - 1),
        lambda c: replace(c, encoding="raw"),
        lambda c: replace(c, encoding="planes2+zstd", size_bytes=999),
    ],
)
def test_a_record_that_cannot_be_true_is_refused(change: Callable[[Chunk], Chunk]) -> None:
    odd = change(ONE)
    with pytest.raises(TrustError):
        parse_chunk_records(dump_chunk_list(ChunkList((odd,))), odd.size_bytes)


def test_unused_repeated_and_disordered_packs_are_refused() -> None:
    data = dump_chunk_list(ChunkList((ONE, replace(ONE, pack=PACKS[1]))))
    head, packs, records = data[:24], data[24:88], data[88:]
    swapped = records[:36] + struct.pack("<I", 1) + records[40:]
    for odd in (packs[:32] * 2 + records, packs + records[49:] * 2, packs + swapped, packs + records[:49] * 2):
        with pytest.raises(TrustError):
            parse_chunk_records(head + odd, 2000)


def test_counts_are_checked_before_memory_is_taken() -> None:
    for packs, chunks in ((2**32 - 1, 2**32 - 1), (0, MAX_CHUNKS + 1), (1, MAX_CHUNKS)):
        with pytest.raises(TrustError):
            parse_chunk_records(struct.pack("<16sII", b"kensho-chunks-1\n", packs, chunks), 0)


def test_a_list_that_is_not_the_files_is_refused() -> None:
    data = dump_chunk_list(ChunkList((ONE,)))
    file = FileEntry("a", 1000, digest_of(b""), "1", True, None, digest_of(data))
    assert parse_chunk_list(data, file) == ChunkList((ONE,))
    with pytest.raises(TrustError):
        parse_chunk_list(data + b"\0", file)
    with pytest.raises(TrustError):
        parse_chunk_list(data, replace(file, size_bytes=999))
