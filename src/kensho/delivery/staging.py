"""Unfinished files: `staging/<digest>.part`, full length and sparse, filled chunk by chunk in any order.

There is no record of what has arrived: on resume every chunk that is there is hashed, and the digest decides. So no
order of writes needs to be kept until the end, a kill at any moment loses only the chunks in flight, and a power cut
only what was not yet synced. Hashing costs 0.1 s per 300 MB; what was never written is a hole: skipped.

`finish` is the one way out: fsync and whole-file digest (at the same time), read-only, and only then the final name.
"""

import stat
from collections import Counter
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from threading import Lock

from kensho.base.errors import Damaged, TrustError
from kensho.base.ids import Digest
from kensho.delivery.chunk_list import Chunk
from kensho.delivery.disk import Disk, storage_errors
from kensho.delivery.hashing import FollowingHash, hash_spans
from kensho.delivery.installed import Record
from kensho.delivery.parallel import Meanwhile
from kensho.delivery.plan import Place, Slot, WantedFile
from kensho.delivery.planted import make_way_for_file, remove_tree

SYNC_BYTES = 64 << 20
"""Of one file, written and not yet synced. Whoever wrote the last of them syncs, while the others go on: so the disk
works from the beginning, and a power cut costs little. Measured on ext4: a repair of 300 MB takes 0.34 s instead of
0.41; half as much is no faster."""
MAX_FOLLOWED = 64
"""Files that are hashed while they fill, each of which is held open. The others, and those of one chunk, are hashed
when they are finished."""


class Staging:
    """The partial files of one store. Writing is safe from several threads, as long as slots differ; the caller holds
    the store's lock. Everything may raise StorageError."""

    def __init__(self, folder: Path, *, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk
        self._following: dict[Digest, FollowingHash] = {}
        self._unsynced: Counter[Digest] = Counter()
        self._lock = Lock()

    def prepare(self, file: WantedFile, kept: Collection[int] = ()) -> None:
        """The partial file exists and has its full length (a hole; the plan has checked the space). The chunks `kept`
        are in it already."""
        path = self.path(file.digest)
        with storage_errors("make a partial file", self._folder):
            if not self._is_ours(path):
                remove_tree(self._disk, path)
            found = self._disk.lstat(path)
            if found and not found.st_mode & stat.S_IWUSR:
                self._disk.set_writable(path)  # killed inside `finish`, and the disk lost a chunk since
            fd = self._disk.open_write(path)
            try:
                if self._disk.fstat(fd).st_size != file.size_bytes:
                    self._disk.truncate(fd, file.size_bytes)
            finally:
                self._disk.close(fd)
        if following := self._following.pop(file.digest, None):
            following.close()
        if len(file.chunks) > 1 and len(self._following) < MAX_FOLLOWED:
            self._following[file.digest] = self._follow(file)
            self._following[file.digest].fill(*kept)

    def release(self) -> None:
        """Nothing is filled any more: files that were not finished are closed. Idempotent."""
        while self._following:
            self._following.popitem()[1].close()

    def verified(self, file: WantedFile) -> frozenset[int]:
        """Indices of the chunks whose bytes are right. Hashes what is not a hole, on two threads."""
        with storage_errors("read a partial file", self._folder):
            if not self._is_ours(self.path(file.digest)):
                return frozenset()
            fd = self._disk.open_read(self.path(file.digest))
            try:
                spans = [
                    (index, offset, chunk)
                    for index, (offset, chunk) in enumerate(offsets(file.chunks))
                    if self._disk.has_data(fd, offset, chunk.size_bytes)
                ]
                found = hash_spans(self._disk, fd, [(offset, chunk.size_bytes) for _, offset, chunk in spans])
            finally:
                self._disk.close(fd)
        return frozenset(
            index for (index, _, chunk), digest in zip(spans, found, strict=True) if digest == chunk.digest
        )

    def write(self, slot: Slot, data: bytes | memoryview) -> None:
        """Verified bytes of one chunk into their slot."""
        with storage_errors("write a chunk", self._folder):
            fd = self._disk.open_write(self.path(slot.file))
            try:
                self._disk.write(fd, data, slot.offset)
                self._filled(slot, len(data), fd)
            finally:
                self._disk.close(fd)

    def copy(self, slot: Slot, size_bytes: int, source: int, offset: int, buffer: memoryview) -> bool:
        """A chunk from another file, piece by piece through `buffer`. Not verified. False if it cannot be read."""
        with storage_errors("write a chunk", self._folder):
            fd = self._disk.open_write(self.path(slot.file))
            try:
                for done in range(0, size_bytes, len(buffer)):
                    piece = buffer[: size_bytes - done]
                    if not self._read(source, piece, offset + done):
                        return False
                    self._disk.write(fd, piece, slot.offset + done)
                self._filled(slot, size_bytes, fd)
            finally:
                self._disk.close(fd)
        return True

    def place(self, file: Digest, offset: int) -> Place:
        """Where another file can copy a verified chunk from."""
        return Place(f"{self._folder.name}/{file}.part", offset)

    def finish(self, file: WantedFile, target: Path, *, now: float) -> Record:
        """The file, all of whose chunks are here, gets its final name `target`. Returns what was verified. The name is
        durable when `Versions.publish` has used it.

        TrustError if the chunks are right and the file is not: the publisher signed a contradiction. Damaged if a chunk
        is no longer what was written; it is fetched again by the next run.
        """
        path = self.path(file.digest)
        following = self._following.pop(file.digest, None) or self._follow(file)
        with closing(following), storage_errors("finish a file", self._folder):
            fd = self._disk.open_write(path)
            try:
                with Meanwhile(lambda: following.finish(fd)) as hashing:  # needs the processor, fsync the disk
                    self._sync(fd, path)
                if hashing.result() != file.digest:
                    raise self._contradiction(file)
                self._disk.set_read_only(fd)
                record = Record.of(file.digest, self._disk.fstat(fd), now)
            finally:
                self._disk.close(fd)
            make_way_for_file(self._disk, target)
            self._disk.rename(path, target)
            named = self._disk.lstat(target)
        if named is None or (named.st_dev, named.st_ino) != (record.dev, record.inode):
            # Where locks hold nobody (NFS without a lock daemon), another process can have taken the file's place.
            raise Damaged(f"another process writes to {self._folder}", advice="run it again when it has finished")
        return record

    def _is_ours(self, path: Path) -> bool:
        """A regular file with no other name: it is written in place, and nobody else's bytes may be."""
        found = self._disk.lstat(path)
        return found is not None and stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    def path(self, digest: Digest) -> Path:
        return self._folder / f"{digest}.part"

    def _read(self, fd: int, piece: memoryview, offset: int) -> bool:
        try:
            return self._disk.read_into(fd, piece, offset) == len(piece)
        except OSError:
            return False  # as good as wrong

    def _filled(self, slot: Slot, size_bytes: int, fd: int) -> None:
        with self._lock:
            self._unsynced[slot.file] += size_bytes
            if is_much := self._unsynced[slot.file] >= SYNC_BYTES:
                self._unsynced[slot.file] = 0
        if is_much:
            self._sync(fd, self.path(slot.file))
        if following := self._following.get(slot.file):
            following.fill(slot.index)
            following.follow()

    def _follow(self, file: WantedFile) -> FollowingHash:
        return FollowingHash(self._disk, self.path(file.digest), [chunk.size_bytes for chunk in file.chunks])

    def _sync(self, fd: int, path: Path) -> None:
        try:
            self._disk.fsync(fd)
        except OSError:
            # The kernel reports a failed write once and then takes the pages for clean: a later fsync of this file
            # would succeed without its bytes. It is thrown away (list item 19 of the delivery design).
            self._disk.unlink(path)
            raise

    def _contradiction(self, file: WantedFile) -> TrustError | Damaged:
        if len(self.verified(file)) == len(file.chunks):
            self._disk.unlink(self.path(file.digest))
            return TrustError(
                f"file {file.digest[:12]} is not the sum of its chunks", advice="its publisher must publish it again"
            )
        return Damaged(
            f"the disk gave back other bytes than were written to {self._folder}",
            advice="check the disk, then run it again",
        )


def offsets(chunks: tuple[Chunk, ...]) -> list[tuple[int, Chunk]]:
    """Each chunk with its offset in the file."""
    found, offset = [], 0
    for chunk in chunks:
        found.append((offset, chunk))
        offset += chunk.size_bytes
    return found
