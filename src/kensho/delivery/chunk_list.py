"""The chunk list of one file: a compact, strict, content-addressed document of its own. Pure.

It is separate from the manifest so that the manifest stays small for a 100 GB model. A record says how many bytes
of the file come next, never at which offset, so that gaps and overlaps cannot be written down at all.

    b"kensho-chunks-1\\n"                                                  16 bytes
    pack count P, chunk count N                                            2 x u32, little-endian
    P x SHA-256 of a pack, in the order in which the chunks first use them 32 bytes each
    N x digest, size, pack index, offset in the pack, encoded size, encoding   32 bytes, 4 x u32, u8

One list has exactly one document: nothing is optional, no pack is unused or named twice, no byte is left over. A file
of 0 bytes has no chunk. Size: 49 bytes a chunk, 0.7 kB for 60 MB of weights. In memory a `Chunk` takes about 0.3 kB.
"""

import struct
from collections.abc import Iterator
from typing import Literal, get_args

from kensho.base.errors import TrustError
from kensho.base.ids import Digest
from kensho.base.structs import Struct

Encoding = Literal["raw", "zstd", "planes2+zstd"]
"""How a chunk's bytes are stored in a pack: as they are; zstd; or split into the two byte planes of 16-bit words
(all low bytes, then all high bytes), then zstd."""

MAX_CHUNK_BYTES = 4 << 20
"""Measured (design of delivery, section 2): tensor-aligned pieces of 4 MiB cost no delta size against smaller ones,
with 26 times fewer digests than 64 KiB chunks; and it is what one interrupted connection loses at most."""
MAX_PACK_BYTES = 64 << 20
"""Guess, as large as a Xet xorb: few files on the server, and one lost pack is not the model."""
MAX_CHUNKS = 1_000_000
"""Of one file: 4 TB of weights. Bounds the memory of a reader at about 300 MB (measured)."""
MAX_LIST_BYTES = 16 + 8 + MAX_CHUNKS * (32 + 49)


class Chunk(Struct):
    """One piece of one file. Chunks of a list follow each other without gap: offset = sum of the sizes before."""

    digest: Digest
    """SHA-256 of the decoded bytes."""
    size_bytes: int
    """1 to MAX_CHUNK_BYTES."""
    pack: Digest
    """SHA-256 of the pack file that holds it: `packs/<pack>.pack`."""
    pack_offset: int
    encoded_bytes: int
    """As long as the chunk if raw, shorter otherwise."""
    encoding: Encoding


class ChunkList(Struct):
    chunks: tuple[Chunk, ...]

    @property
    def size_bytes(self) -> int:
        return sum(chunk.size_bytes for chunk in self.chunks)


def dump_chunk_list(chunks: ChunkList) -> bytes:
    """The document of the list. Precondition: the chunks keep the limits above."""
    packs: dict[Digest, int] = {}
    for chunk in chunks.chunks:
        packs.setdefault(chunk.pack, len(packs))
    records = (
        _RECORD.pack(
            bytes.fromhex(chunk.digest),
            chunk.size_bytes,
            packs[chunk.pack],
            chunk.pack_offset,
            chunk.encoded_bytes,
            _ENCODINGS.index(chunk.encoding),
        )
        for chunk in chunks.chunks
    )
    head = _HEAD.pack(_MAGIC, len(packs), len(chunks.chunks))
    return b"".join((head, *(bytes.fromhex(pack) for pack in packs), *records))


def parse_chunk_records(data: bytes | memoryview, size_bytes: int) -> ChunkList:
    """The list in the document, whose chunks add up to `size_bytes`. TrustError on anything else.

    O(n) time and memory. The caller has compared the digest of `data` with the signed one.
    """
    if len(data) < _HEAD.size:
        _refuse("it ends inside its head")
    magic, pack_count, chunk_count = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        _refuse("its format is unknown")
    # Before anything is allocated: both counts are bounded by the bytes that are really there.
    if chunk_count > MAX_CHUNKS or pack_count > chunk_count:
        _refuse(f"it claims {chunk_count} chunks in {pack_count} packs")
    if len(data) != _HEAD.size + pack_count * _DIGEST_BYTES + chunk_count * _RECORD.size:
        _refuse("its length is not the one that its head says")
    body = memoryview(data)[_HEAD.size :]
    packs = [Digest(body[at * _DIGEST_BYTES : (at + 1) * _DIGEST_BYTES].hex()) for at in range(pack_count)]
    if len(set(packs)) != pack_count:
        _refuse("it names a pack twice")
    chunks = ChunkList(tuple(_parse_records(body[pack_count * _DIGEST_BYTES :], packs)))
    if chunks.size_bytes != size_bytes:
        _refuse(f"its chunks have {chunks.size_bytes} bytes, the file has {size_bytes}")
    return chunks


_MAGIC = b"kensho-chunks-1\n"
_HEAD = struct.Struct("<16sII")
_RECORD = struct.Struct("<32sIIIIB")
_DIGEST_BYTES = 32
_ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)


def _parse_records(records: memoryview, packs: list[Digest]) -> Iterator[Chunk]:
    used = 0
    for digest, size, pack, offset, encoded, encoding in _RECORD.iter_unpack(records):
        if not 1 <= size <= MAX_CHUNK_BYTES:
            _refuse(f"a chunk has {size} bytes")
        if pack > used or pack >= len(packs):
            _refuse("its packs are not in order of use")
        used = max(used, pack + 1)
        if encoding >= len(_ENCODINGS) or not _is_sane_size(_ENCODINGS[encoding], size, encoded):
            _refuse("a chunk's encoding does not fit its size")
        if offset + encoded > MAX_PACK_BYTES:
            _refuse("a chunk lies outside its pack")
        yield Chunk(Digest(digest.hex()), size, packs[pack], offset, encoded, _ENCODINGS[encoding])
    if used != len(packs):
        _refuse("it names a pack that no chunk uses")


def _is_sane_size(encoding: Encoding, size: int, encoded: int) -> bool:
    if encoding == "raw":
        return encoded == size
    return 1 <= encoded < size and (encoding == "zstd" or size % 2 == 0)


def _refuse(reason: str) -> None:
    raise TrustError(f"a chunk list is malformed: {reason}", advice="tell its publisher")
