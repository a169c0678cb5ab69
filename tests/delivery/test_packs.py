"""kensho.delivery.packs: decoding gives the signed bytes or DigestMismatch, within the signed size."""

import contextlib
import random
import struct
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import DigestMismatch
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import replace
from kensho.delivery import packs
from kensho.delivery.chunk_list import Chunk
from kensho.delivery.disk import RealDisk
from kensho.delivery.packs import PackWriter, decode_chunk, encode_chunk

PACK = digest_of(b"pack")


def chunk_of(data: bytes) -> tuple[bytes, Chunk]:
    encoding, encoded = encode_chunk(data)
    return encoded, Chunk(digest_of(data), len(data), PACK, 0, len(encoded), encoding)


def weights(words: int) -> bytes:
    """Words as in bf16 weights: a noisy low byte, a high byte of few values."""
    rng = random.Random(1)
    return b"".join(struct.pack("<BB", rng.randrange(256), rng.choice((0x3C, 0x3D, 0xBC))) for _ in range(words))


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=300), st.integers(1, 40))
def test_an_encoded_chunk_comes_back_and_never_grows(data: bytes, times: int) -> None:
    encoded, chunk = chunk_of(data * times)
    assert len(encoded) <= chunk.size_bytes
    assert decode_chunk(memoryview(encoded), chunk) == data * times


def test_each_form_is_chosen_where_it_is_the_shortest() -> None:
    assert chunk_of(random.Random(1).randbytes(4096))[1].encoding == "raw"
    assert chunk_of(b"some text, " * 400)[1].encoding == "zstd"
    assert chunk_of(weights(20_000))[1].encoding == "planes2+zstd"


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["raw", "zstd", "planes2+zstd"]), st.binary(max_size=80), st.integers(2, 4096))
def test_any_bytes_are_the_signed_ones_or_a_digest_mismatch(encoding: str, junk: bytes, size: int) -> None:
    chunk = Chunk(digest_of(b"?"), size, PACK, 0, len(junk), encoding)  # type: ignore[arg-type]
    with pytest.raises(DigestMismatch):
        decode_chunk(junk, chunk)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 255))
def test_one_changed_byte_is_never_accepted(at: int, flip: int) -> None:
    for data in (b"some text, " * 40, weights(300)):
        encoded, chunk = chunk_of(data)
        damaged = bytearray(encoded)
        damaged[at % len(damaged)] ^= flip
        with contextlib.suppress(DigestMismatch):
            assert decode_chunk(bytes(damaged), chunk) == data  # a bit of the frame head that zstd ignores


def test_a_bomb_is_refused_without_taking_its_memory() -> None:
    bombs = [
        zstandard.ZstdCompressor(level=1).compress(bytes(1 << 28)),  # says its size
        zstandard.ZstdCompressor(level=1, write_content_size=False).compress(bytes(1 << 28)),  # does not
        zstandard.ZstdCompressor(  # needs a window of 128 MiB
            compression_params=zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
        ).compress(bytes(1 << 28)),
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            chunk = Chunk(digest_of(bytes(1 << 20)), 1 << 20, PACK, 0, len(bomb), "zstd")
            with pytest.raises(DigestMismatch):
                decode_chunk(bomb, chunk)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_bytes_after_the_frame_and_a_cut_frame_are_refused() -> None:
    encoded, chunk = chunk_of(b"some text, " * 40)
    for odd in (encoded + b"\0", encoded + encoded, encoded[:-1]):
        with pytest.raises(DigestMismatch):
            decode_chunk(odd, replace(chunk, encoded_bytes=len(odd)))
        with pytest.raises(DigestMismatch):
            decode_chunk(odd, chunk)


def test_packs_are_named_by_their_digest_and_hold_every_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "MAX_PACK_BYTES", 10_000)
    writer = PackWriter(tmp_path, RealDisk())
    data = [random.Random(number).randbytes(3000) for number in range(8)]
    for piece in data:
        writer.add(digest_of(piece), *encode_chunk(piece))
        assert digest_of(piece) in writer
    writer.close()
    files = sorted((tmp_path / "packs").iterdir())
    assert [file.name for file in files] == sorted(f"{digest_of(file.read_bytes())}.pack" for file in files)
    assert len(files) == 3
    assert all(file.stat().st_size <= 10_000 for file in files)
    assert writer.bytes_packed == sum(file.stat().st_size for file in files)
    for piece in data:
        place = writer.locations[digest_of(piece)]
        stored = (tmp_path / "packs" / f"{place.pack}.pack").read_bytes()
        assert stored[place.offset : place.offset + place.encoded_bytes] == piece


def test_an_aborted_pack_leaves_nothing(tmp_path: Path) -> None:
    writer = PackWriter(tmp_path, RealDisk())
    writer.add(Digest("a" * 64), "raw", b"x")
    writer.abort()
    writer.abort()
    assert list((tmp_path / "packs").iterdir()) == []
    assert not writer.locations


def test_a_killed_writers_leftover_does_not_reach_the_next_pack(tmp_path: Path) -> None:
    killed = PackWriter(tmp_path, RealDisk())
    killed.add(Digest("a" * 64), "raw", b"longer than what follows")
    writer = PackWriter(tmp_path, RealDisk())
    writer.add(digest_of(b"x"), "raw", b"x")
    writer.close()
    assert (tmp_path / "packs" / f"{digest_of(b'x')}.pack").read_bytes() == b"x"


def test_memory_that_is_used_again_gives_each_chunk_its_own_bytes() -> None:
    scratch = bytearray(1 << 20)
    for data in (weights(20_000), b"some text, " * 400, weights(300), random.Random(1).randbytes(4096)):
        encoded, chunk = chunk_of(data)
        assert decode_chunk(memoryview(encoded), chunk, scratch=scratch) == data
