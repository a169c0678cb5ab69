"""How a chunk is stored in a pack, and packs themselves: encoded chunks one after the other, range-readable.

Each chunk has the shortest of three forms; measured on bf16 weights (design of delivery, section 2): zstd-1 over the
two byte planes 68.4 %, zstd-1 alone 78.0 %, and higher levels are slower and no smaller. A pack is named by its own
SHA-256 but nobody needs to check that name: the digest of each decoded chunk is signed, and it decides.

Decoding is bounded by the *signed* size before any byte is decoded: the frame must say exactly that size, need no
larger window and no dictionary, and have nothing after it (decompression bombs, list item 13 of the delivery design).
"""

import hashlib
from collections.abc import Mapping
from mmap import mmap
from pathlib import Path
from typing import NoReturn

import zstandard

from kensho.base.errors import DigestMismatch
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import Struct
from kensho.delivery.chunk_list import MAX_CHUNK_BYTES, MAX_PACK_BYTES, Chunk, Encoding
from kensho.delivery.disk import Disk
from kensho.delivery.durable import make_folders
from kensho.delivery.layout import pack_path

_LEVEL = 1
_WINDOW_BYTES = 2 * MAX_CHUNK_BYTES
"""A frame of one chunk never needs more than its own size; zstd rounds up to a power of two."""


def encode_chunk(data: bytes) -> tuple[Encoding, bytes]:
    """The shortest form of the chunk; raw unless another is really shorter.

    `data` has 1 byte to 4 MiB. Costs about 2.4 ms per MiB of bf16 weights (two compressions); releases the GIL for
    most of it.
    """
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
    best: tuple[Encoding, bytes] = ("raw", data)
    encoded = compressor.compress(data)
    if len(encoded) < len(best[1]):
        best = ("zstd", encoded)
    if len(data) % 2 == 0:
        encoded = compressor.compress(data[0::2] + data[1::2])
        if len(encoded) < len(best[1]):
            best = ("planes2+zstd", encoded)
    return best


def decode_chunk(
    encoded: bytes | memoryview, chunk: Chunk, *, scratch: bytearray | mmap | None = None
) -> bytes | memoryview:
    """The chunk's bytes. DigestMismatch if they are not the signed ones, whatever the reason: ask another source.

    They may lie in `encoded` or in `scratch` (of at least the signed size), which a caller with many chunks uses again:
    on memory that is new each time the kernel's zeroing costs more than the decoding. Allocates at most twice the
    signed size, never what the bytes claim. About 0.9 ms per MiB, hashing included.
    """
    if len(encoded) != chunk.encoded_bytes:
        _reject(chunk, f"{len(encoded)} bytes instead of {chunk.encoded_bytes}")
    data: bytes | memoryview = encoded
    if chunk.encoding != "raw":
        data = _decompress(encoded, chunk)
    if chunk.encoding == "planes2+zstd":
        data = _join_planes(data, bytearray(len(data)) if scratch is None else scratch)
    if len(data) != chunk.size_bytes or digest_of(data) != chunk.digest:
        _reject(chunk, "other bytes")
    return data


class Location(Struct):
    """Where a chunk lies in the repository."""

    pack: Digest
    offset: int
    encoded_bytes: int
    encoding: Encoding


class PackWriter:
    """Writes new packs into a repository: fsync'd, then renamed to their digest. Not thread-safe.

    A pack has its name only when it is whole, so a publisher that is killed leaves at worst a `.partial` file, which
    the next one removes. `locations` has the chunks of finished packs only; after `close` it has all of them.
    """

    def __init__(self, repo: Path, disk: Disk) -> None:
        self._repo = repo
        self._disk = disk
        self._partial = repo / "packs" / ".partial"
        self._fd = -1
        self._hash = hashlib.sha256()
        self._size = 0
        self._pending: dict[Digest, tuple[int, int, Encoding]] = {}
        self._locations: dict[Digest, Location] = {}
        self.bytes_packed = 0
        """Bytes of all packs so far, the unfinished one included."""

    @property
    def locations(self) -> Mapping[Digest, Location]:
        return self._locations

    def __contains__(self, digest: Digest) -> bool:
        """Whether the chunk was already added."""
        return digest in self._pending or digest in self._locations

    def add(self, digest: Digest, encoding: Encoding, encoded: bytes) -> None:
        """Append a chunk that is not yet in. OSError if the disk refuses."""
        if self._size + len(encoded) > MAX_PACK_BYTES:
            self._finish_pack()
        if self._fd < 0:
            make_folders(self._disk, self._partial.parent)
            self._disk.unlink(self._partial)
            self._fd = self._disk.open_write(self._partial)
        self._disk.write(self._fd, encoded, self._size)
        self._hash.update(encoded)
        self._pending[digest] = (self._size, len(encoded), encoding)
        self._size += len(encoded)
        self.bytes_packed += len(encoded)

    def close(self) -> None:
        """Finish the last pack. OSError if the disk refuses; then nothing refers to it yet."""
        if self._pending:
            self._finish_pack()

    def abort(self) -> None:
        """Forget the unfinished pack and free its space. Idempotent, and harmless after `close`."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1
            self._disk.unlink(self._partial)

    def _finish_pack(self) -> None:
        pack = Digest(self._hash.hexdigest())
        self._disk.set_read_only(self._fd)
        self._disk.fsync(self._fd)
        self._disk.close(self._fd)
        self._fd = -1
        self._disk.rename(self._partial, self._repo / pack_path(pack))
        self._disk.fsync_folder(self._partial.parent)
        for digest, (offset, length, encoding) in self._pending.items():
            self._locations[digest] = Location(pack, offset, length, encoding)
        self._pending = {}
        self._hash = hashlib.sha256()
        self._size = 0


def _decompress(encoded: bytes | memoryview, chunk: Chunk) -> bytes:
    try:
        frame = zstandard.get_frame_parameters(encoded)
        # Checked first: the decoder would allocate what the frame claims, not what max_output_size says.
        if frame.content_size != chunk.size_bytes:
            _reject(chunk, "a frame of another size")
        decoder = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        return decoder.decompress(encoded, max_output_size=chunk.size_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _mismatch(chunk, f"not a zstd frame ({error})") from error


def _join_planes(planes: bytes | memoryview, words: bytearray | mmap) -> memoryview:
    size, view = len(planes), memoryview(planes)
    words[0:size:2] = view[: size // 2]
    words[1:size:2] = view[size // 2 :]
    return memoryview(words)[:size]


def _reject(chunk: Chunk, found: str) -> NoReturn:
    raise _mismatch(chunk, found)


def _mismatch(chunk: Chunk, found: str) -> DigestMismatch:
    return DigestMismatch(
        f"chunk {chunk.digest[:12]}: the source delivered {found}",
        advice="another source is asked, or try again later",
        digest=chunk.digest,
        pack=chunk.pack,
    )
