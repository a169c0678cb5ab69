"""Read the files of a model once, chunk by chunk: hash them, and pack the chunks that the repository does not have.

The cuts are found first (`measure`), for all files, so that a truncated file is refused before anything is written.
A file that changes between the two readings is a ConfigError: its digests would belong to no state of it.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kensho.base.errors import ConfigError
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import Struct
from kensho.delivery.chunk_list import Chunk, ChunkList
from kensho.delivery.chunking import cut
from kensho.delivery.disk import Disk
from kensho.delivery.model_folder import SourceFile, reading
from kensho.delivery.packs import Location, PackWriter, encode_chunk

Progress = Callable[[int, int], None]
"""(bytes of the source done, bytes in all)."""


class CutFile(Struct):
    """A file and where it is to be cut, at one moment."""

    source: SourceFile
    sizes: list[int]
    size_bytes: int
    stamp: tuple[int, int, int]
    """Inode, size, mtime_ns: another stamp later means that the file changed."""


class PackedFile(Struct):
    path: str
    size_bytes: int
    digest: Digest
    chunks: list[tuple[Digest, int]]
    """Digest and size of each, in order."""


def measure(disk: Disk, file: SourceFile) -> CutFile:
    """Where to cut the file. ModelError if it is truncated or odd, ConfigError if it cannot be read."""
    with _open(disk, file) as fd:
        stamp = _stamp(disk, fd)
        size = stamp[1]
        return CutFile(file, cut(file.path, size, lambda at, count: _read(disk, fd, at, count)), size, stamp)


class Packer:
    """Used once, by one thread: `pack` all files, then ask for their chunk lists."""

    def __init__(self, disk: Disk, writer: PackWriter, known: dict[Digest, Location]) -> None:
        self._disk, self._writer, self._known = disk, writer, known
        self._bytes_done = 0

    @property
    def bytes_packed(self) -> int:
        """Bytes of new packs."""
        return self._writer.bytes_packed

    def pack(self, files: list[CutFile], progress: Progress) -> list[PackedFile]:
        """All new chunks are in finished packs afterwards. OSError if the disk refuses, ConfigError as `measure`."""
        total = sum(file.size_bytes for file in files)
        try:
            packed = [self._pack_file(file, progress, total) for file in files]
            self._writer.close()
        finally:
            self._writer.abort()
        return packed

    def chunk_list(self, file: PackedFile) -> ChunkList:
        return ChunkList(tuple(self._locate(digest, size) for digest, size in file.chunks))

    def _pack_file(self, file: CutFile, progress: Progress, total: int) -> PackedFile:
        whole = hashlib.sha256()
        chunks: list[tuple[Digest, int]] = []
        with _open(self._disk, file.source) as fd:
            offset = 0
            for size in file.sizes:
                with reading(file.source.path):
                    data = _read(self._disk, fd, offset, size)
                _check_unchanged(file, len(data) == size)
                whole.update(data)
                digest = digest_of(data)
                chunks.append((digest, size))
                if digest not in self._known and digest not in self._writer:
                    self._writer.add(digest, *encode_chunk(data))
                offset += size
                self._bytes_done += size
                progress(self._bytes_done, total)
            _check_unchanged(file, _stamp(self._disk, fd) == file.stamp)
        return PackedFile(file.source.path, file.size_bytes, Digest(whole.hexdigest()), chunks)

    def _locate(self, digest: Digest, size: int) -> Chunk:
        place = self._known.get(digest) or self._writer.locations[digest]
        return Chunk(digest, size, place.pack, place.offset, place.encoded_bytes, place.encoding)


@contextmanager
def _open(disk: Disk, file: SourceFile) -> Iterator[int]:
    with reading(file.path):
        fd = disk.open_read(file.location)
    try:
        yield fd
    finally:
        disk.close(fd)


def _stamp(disk: Disk, fd: int) -> tuple[int, int, int]:
    found = disk.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read(disk: Disk, fd: int, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    return bytes(memoryview(buffer)[: disk.read_into(fd, memoryview(buffer), offset)])


def _check_unchanged(file: CutFile, is_unchanged: bool) -> None:
    if not is_unchanged:
        raise ConfigError(
            f"{file.source.path} changed while it was being published",
            advice="publish again when nothing writes to the folder",
        )
