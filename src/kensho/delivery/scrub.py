"""The fourth grade of check: every byte of the store hashed again within a stated period, in the background.

Bits rot where nobody looks, and what a stat shows is not what the disk holds. A *pass* goes through every chunk of
every installed file and document in a fixed order, spread evenly over less than half of the period; so two readings of
the same byte are never further apart than the period (`schedule`, which is pure: tests prove it on virtual time). Where
a pass has got to is kept in the state: it goes on after a restart, and a machine that was off catches up.

    scrubber = Scrubber(store, clock=clock, emit=emit, period_s=7 * 86400)
    while True:
        step = scrubber.step()        # at most some 16 MiB; then mend step.damaged (`repair`)
        clock.sleep(step.wait_s)

A file that a pass read whole and found right gets a new verification record; what is damaged loses its record, so that
every other check finds it too. Nothing is changed here: mending is `repair`'s job. Run it where `lower_priority` was
called: an idle machine's time is free, a busy one's is not.
"""

import json
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from errno import EIO
from itertools import accumulate, groupby

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import Damaged, StorageError, TrustError
from kensho.base.events import CheckFinished, ChunkCorrupt, Emit
from kensho.base.ids import Digest
from kensho.base.structs import Struct
from kensho.delivery.checker import Damage
from kensho.delivery.disk import storage_errors
from kensho.delivery.hashing import hash_spans
from kensho.delivery.installed import InstalledFile, Record, Release
from kensho.delivery.inventory import chunks_of
from kensho.delivery.schedule import ScrubState, next_slice
from kensho.delivery.staging import offsets
from kensho.delivery.store import Store

Key = tuple[str, str, int]


class Piece(Struct):
    """One chunk of one file or document, under one of its names in the store."""

    damage: Damage
    """What it is damage of if it is not right (`chunks` empty)."""
    name: str
    """Relative to the store."""
    index: int
    offset: int
    size_bytes: int
    digest: Digest
    file_bytes: int | None
    """The right size of the whole file, on its last piece; else None."""

    @property
    def key(self) -> Key:
        """Its place in the order of a pass."""
        return (self.damage.digest, self.name, self.index)


class Step(Struct):
    """What one step found, and how long to wait before the next one."""

    damaged: tuple[Damage, ...]
    wait_s: Seconds
    bytes_hashed: int


class Scrubber:
    """Scrubs one store. Not thread-safe; other processes may scrub, check or change the same store meanwhile."""

    def __init__(self, store: Store, *, clock: Clock, emit: Emit, period_s: Seconds) -> None:
        self._store, self._clock, self._emit, self._period_s = store, clock, emit, period_s
        self._releases: list[Release] | None = None
        self._pieces: list[Piece] = []
        self._ends: list[int] = []
        self._begun: dict[str, Record] = {}
        """By name: what the kernel said of a file when this pass began with it, and every piece since was right."""

    def step(self) -> Step:
        """Hash what is due, at most SLICE_BYTES and one chunk. StorageError if the disk or the state refuse."""
        begun_s = self._clock.monotonic_s()
        cursor = self._read_cursor()
        self._list_pieces()
        done = bisect_right(self._pieces, cursor.after, key=lambda piece: piece.key) if cursor.after else 0
        due = next_slice(ScrubState(self._ends, done, cursor.started_at, self._period_s), self._clock.wall_s())
        pieces = self._pieces[due.first : due.last]
        if not pieces:
            return Step((), due.wait_s, 0)
        if due.is_new_pass:
            cursor = _Cursor(due.started_at, None, 0, 0)
        damaged = self._hash(pieces)
        hashed = sum(piece.size_bytes for piece in pieces)
        cursor = _Cursor(due.started_at, pieces[-1].key, cursor.damaged + len(damaged), cursor.bytes_hashed + hashed)
        self._write_cursor(cursor)
        if due.last == len(self._pieces):
            self._finish(cursor)
        # At least as long as the hashing took: a pass that is late never takes more than half of one core.
        return Step(damaged, self._clock.monotonic_s() - begun_s, hashed)

    # --- what there is to hash ---

    def _list_pieces(self) -> None:
        releases = self._store.state.releases()
        if releases == self._releases:
            return
        seen: set[tuple[int, int]] = set()
        found = {piece.key: piece for release in releases for piece in self._pieces_of(release, seen)}
        self._pieces = [found[key] for key in sorted(found)]
        self._ends = list(accumulate(piece.size_bytes for piece in self._pieces))
        self._releases = releases

    def _pieces_of(self, release: Release, seen: set[tuple[int, int]]) -> Iterator[Piece]:
        documents = {"manifest.json": release.manifest} | {f"{f.path}.chunks": f.chunk_list for f in release.files}
        for path, digest in documents.items():
            name, damage = f"blobs/{digest}", Damage(release.model, release.version, path, digest, (), is_document=True)
            with storage_errors("look at a document", self._store.root):
                found = self._store.disk.lstat(self._store.root / name)
            size = found.st_size if found else 0
            if found is None or self._is_new(name, seen):
                yield Piece(damage, name, 0, 0, size, digest, None)
        for file in release.files:
            if file.used is not None:
                origin = next(other for other in release.files if other.digest == file.used)
                damage = Damage(release.model, release.version, file.path, origin.digest, ())
                for name in (f"versions/{release.model}/{release.version}/{file.path}", f"blobs/{origin.digest}"):
                    if self._is_new(name, seen):
                        yield from self._pieces_of_file(origin, damage, name)

    def _is_new(self, name: str, seen: set[tuple[int, int]]) -> bool:
        """Hard links are one file. What is not there is listed under each name: it is damage."""
        with storage_errors("look at a file", self._store.root):
            found = self._store.disk.lstat(self._store.root / name)
        if found is None:
            return True
        inode = (found.st_dev, found.st_ino)
        if inode in seen:
            return False
        seen.add(inode)
        return True

    def _pieces_of_file(self, file: InstalledFile, damage: Damage, name: str) -> Iterator[Piece]:
        try:
            chunks = offsets(chunks_of(self._store, file))
        except (Damaged, TrustError):  # its chunk list is damaged, which its own piece tells: hashed as a whole
            yield Piece(damage, name, 0, 0, file.size_bytes, file.digest, file.size_bytes)
            return
        for index, (offset, chunk) in enumerate(chunks):
            size = file.size_bytes if index == len(chunks) - 1 else None
            yield Piece(damage, name, index, offset, chunk.size_bytes, chunk.digest, size)

    # --- hashing ---

    def _hash(self, pieces: Sequence[Piece]) -> tuple[Damage, ...]:
        damaged: list[Damage] = []
        for name, group in groupby(pieces, key=lambda piece: piece.name):
            listed = list(group)
            wrong = self._hash_file(name, listed)
            damage = listed[0].damage
            if wrong is not None and self._is_installed(damage):
                self._begun.pop(name, None)
                chunks = () if damage.is_document else tuple(wrong)
                found = Damage(damage.model, damage.version, damage.path, damage.digest, chunks, damage.is_document)
                damaged.append(found)
                for chunk in chunks:
                    self._emit(ChunkCorrupt(model=damage.model, version=damage.version, path=damage.path, chunk=chunk))
        return tuple(damaged)

    def _hash_file(self, name: str, pieces: Sequence[Piece]) -> list[int] | None:
        """Indices of the pieces that are wrong (perhaps none, if the file has bytes too many); None if all is right."""
        disk, now = self._store.disk, self._clock.wall_s()
        try:
            fd = disk.open_read(self._store.root / name)
        except OSError:
            self._check_store()
            return [piece.index for piece in pieces]  # gone, or no regular file
        try:
            before = disk.fstat(fd)
            if pieces[0].index == 0:
                self._begun[name] = Record.of(pieces[0].damage.digest, before, now)
            wrong = [piece.index for piece in pieces if self._digest(fd, piece) != piece.digest]
            after = disk.fstat(fd)
        finally:
            disk.close(fd)
        size = pieces[-1].file_bytes
        if wrong or (size is not None and after.st_size != size):
            self._store.state.finish_scrub(good=[], bad=[(after.st_dev, after.st_ino)])
            return wrong
        if size is not None:
            record = self._begun.pop(name, None)
            # The same file all the way, that nobody touched: as good as one reading from end to end.
            if record and record == Record.of(record.digest, after, record.verified_at):
                self._store.state.finish_scrub(good=[record], bad=[])
        return None

    def _digest(self, fd: int, piece: Piece) -> Digest:
        with suppress(OSError):
            # The disk is asked, not the page cache. (Pages that an engine has mapped stay, and are read instead.)
            os.posix_fadvise(fd, piece.offset, piece.size_bytes, os.POSIX_FADV_DONTNEED)
        try:
            return hash_spans(self._store.disk, fd, [(piece.offset, piece.size_bytes)], threads=1)[0]
        except OSError as error:
            if error.errno != EIO:
                raise
            return Digest("")  # a sector that cannot be read is a damaged chunk

    def _check_store(self) -> None:
        """A disk that was unmounted is no damage of the files on it."""
        if self._store.disk.lstat(self._store.root / "format") is None:
            raise StorageError(f"the store in {self._store.root} has gone away", advice="is the disk mounted?")

    def _is_installed(self, damage: Damage) -> bool:
        """What another process has removed meanwhile is not damaged."""
        listed = self._store.state.releases(damage.model)
        return any(release.version == damage.version for release in listed)

    # --- where the pass has got to ---

    def _read_cursor(self) -> "_Cursor":
        text = self._store.state.scrub_cursor()
        if text is None:
            return _Cursor(self._clock.wall_s(), None, 0, 0)
        started_at, after, damaged, bytes_hashed = json.loads(text)
        return _Cursor(started_at, (after[0], after[1], after[2]), damaged, bytes_hashed)

    def _write_cursor(self, cursor: "_Cursor") -> None:
        if not self._store.is_read_only:
            values = [cursor.started_at, cursor.after, cursor.damaged, cursor.bytes_hashed]
            self._store.state.set_scrub_cursor(json.dumps(values))

    def _finish(self, cursor: "_Cursor") -> None:
        now = self._clock.wall_s()
        if not self._store.is_read_only:
            self._store.state.finish_check("scrub", good=(), bad=(), damaged=cursor.damaged, now=now)
        files = len({piece.name for piece in self._pieces if not piece.damage.is_document})
        self._emit(
            CheckFinished(
                kind="scrub",
                files=files,
                bytes_hashed=cursor.bytes_hashed,
                damaged_chunks=cursor.damaged,
                seconds=max(now - cursor.started_at, 0.0),
            )
        )


class _Cursor(Struct):
    started_at: Seconds
    after: Key | None
    damaged: int
    """Found in this pass."""
    bytes_hashed: int
    """In this pass."""


def lower_priority() -> None:
    """The calling thread yields to every other one from now on, in computing and in disk access, as far as this system
    allows. It cannot be taken back: call it in a thread that does nothing else."""
    import psutil

    thread = threading.get_native_id()
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread, 19)
    with suppress(OSError, psutil.Error):
        psutil.Process(thread).ionice(psutil.IOPRIO_CLASS_IDLE)
