"""Are the installed bytes still the publisher's? Three grades, no network, and nothing is changed but the records.

    quick   every file whose stat is not that of its verification record is hashed
    load    the same for the one version that is about to be used: the check before each start
    full    every byte is hashed

The fourth grade, every byte bit by bit in the background, is `scrub`. `look` is quick's eyes without its pen.

A file is looked at under both its names, `versions/...` (what an engine opens) and `blobs/...`; hard links are one file
and are hashed once. What is hashed and right gets a record; what is damaged loses it, so that the next quick check
finds it too. Mending is `repair`'s job. This is the start path: what hashing needs comes when something is hashed.
"""

import os
from collections.abc import Iterable, Iterator
from errno import EIO
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import Damaged, StorageError, TrustError
from kensho.base.events import CheckFinished, CheckNotKept, ChunkCorrupt, Emit
from kensho.base.ids import Digest
from kensho.base.structs import Struct, field
from kensho.delivery.disk import storage_errors
from kensho.delivery.installed import InstalledFile, Record, Release
from kensho.delivery.planted import is_folder
from kensho.delivery.store import Store

CheckKind = Literal["quick", "load", "full"]
MAX_EVENTS = 100
"""Chunks of one file that are reported one by one: a lost file of a million chunks is one fact, not a million."""


class Damage(Struct):
    """One file of one version that is not what was accepted."""

    model: str
    version: str
    path: str
    """As in the manifest; for a document of the release, `manifest.json` or `<path>.chunks`."""
    digest: Digest
    """Of the blob that belongs there."""
    chunks: tuple[int, ...]
    """Indices of the damaged chunks. Empty if the bytes are right and only their name is missing, and for documents."""
    is_document: bool = False


class VerifyReport(Struct):
    """`files` and `chunks` were looked at; `bytes_hashed` of them had to be read."""

    kind: CheckKind
    files: int
    chunks: int
    bytes_hashed: int
    damaged: tuple[Damage, ...]
    seconds: Seconds


def verify(store: Store, *, is_full: bool, clock: Clock, emit: Emit) -> VerifyReport:
    """Checks every installed version of every model, previous ones included, and their documents.

    Quick: some 10 us a file. Full: about 3 GB/s. StorageError if the disk cannot be read at all.
    """
    return _check(store, store.state.releases(), "full" if is_full else "quick", clock=clock, emit=emit)


def check_model(store: Store, model: str, *, clock: Clock, emit: Emit) -> VerifyReport:
    """Checks the current version of one model, before it is loaded. NotInstalled if there is none."""
    version = store.model(model).version
    return check_version(store, model, version, clock=clock, emit=emit)


def check_version(store: Store, model: str, version: str, *, clock: Clock, emit: Emit) -> VerifyReport:
    """The same for any installed version."""
    return _check(store, [store.release(model, version)], "load", clock=clock, emit=emit)


def look(store: Store, *, clock: Clock) -> tuple[Damage, ...]:
    """What a quick check would find, leaving no trace: no record, no event, no "last check". For `status`.

    A record that has merely expired is believed here, so that looking stays cheap: only a file whose stat is not that
    of its record is hashed, and each time anew, until a real check settles it.
    """
    run = _Run(store, "quick", clock.wall_s(), store.state.records(), believes_old=True)
    return _examine(run, store.state.releases(), lambda event: None).damaged


class _Finding(Struct, frozen=False):
    """What was found out about one inode."""

    damaged: tuple[int, ...] | None
    """None: it is right. An empty tuple: too long, or wrong in a way that no chunk list tells."""


class _Run(Struct, frozen=False):
    store: Store
    kind: CheckKind
    now: Seconds
    known: dict[tuple[int, int], Record]
    believes_old: bool = False
    """A record is believed whatever its age."""
    seen: dict[tuple[int, int, Digest], _Finding] = field(factory=dict)
    good: list[Record] = field(factory=list)
    bad: set[tuple[int, int]] = field(factory=set)
    bytes_hashed: int = 0

    def is_vouched(self, digest: Digest, found: os.stat_result) -> bool:
        record = self.known.get((found.st_dev, found.st_ino))
        if self.kind == "full" or record is None:
            return False
        return record.vouches_for(digest, found, now=record.verified_at if self.believes_old else self.now)


class _Examined(Struct):
    files: int
    chunks: int
    damaged: tuple[Damage, ...]
    damaged_chunks: int
    """Those that several versions share count once."""


def _check(store: Store, releases: Iterable[Release], kind: CheckKind, *, clock: Clock, emit: Emit) -> VerifyReport:
    start_s = clock.monotonic_s()
    run = _Run(store, kind, clock.wall_s(), store.state.records())
    found = _examine(run, releases, emit)
    if not store.is_read_only:
        try:
            store.state.finish_check(kind, good=run.good, bad=run.bad, damaged=len(found.damaged), now=run.now)
        except StorageError as error:  # a full disk, say, is no reason not to answer from what is whole
            if kind == "full" and run.bad:
                raise  # or what nothing but this check can find would be believed tomorrow
            emit(CheckNotKept(kind=kind, reason=error.message))
    seconds = clock.monotonic_s() - start_s
    emit(
        CheckFinished(
            kind=kind,
            files=found.files,
            bytes_hashed=run.bytes_hashed,
            damaged_chunks=found.damaged_chunks,
            seconds=seconds,
        )
    )
    return VerifyReport(kind, found.files, found.chunks, run.bytes_hashed, found.damaged, seconds)


def _examine(run: _Run, releases: Iterable[Release], emit: Emit) -> _Examined:
    files = chunks = 0
    damaged: list[Damage] = []
    reported: set[tuple[Digest, int]] = set()
    for release in releases:
        for file in release.files:
            if file.used is None:
                continue  # an optional file that is absent is degraded, not damaged
            files += 1
            chunks += file.chunk_count
            found = _check_file(run, release, file)
            if found:
                damaged.append(found)
                _report(found, reported, emit)
        if run.kind != "load":
            damaged.extend(_check_documents(run, release))
    return _Examined(files, chunks, tuple(damaged), len(reported))


def _report(found: Damage, reported: set[tuple[Digest, int]], emit: Emit) -> None:
    """One event a chunk, though several versions may share it."""
    for index in found.chunks:
        if (found.digest, index) not in reported and sum(digest == found.digest for digest, _ in reported) < MAX_EVENTS:
            emit(ChunkCorrupt(model=found.model, version=found.version, path=found.path, chunk=index))
        reported.add((found.digest, index))


def _check_file(run: _Run, release: Release, file: InstalledFile) -> Damage | None:
    """Both names of the file. Damage of either is damage of the file."""
    origin = next(other for other in release.files if other.digest == file.used)  # a fallback is another file's blob
    names = (f"versions/{release.model}/{release.version}/{file.path}", f"blobs/{origin.digest}")
    findings = [_look(run, name, origin) for name in names]
    if all(found and found.damaged is None for found in findings):
        return None
    chunks: set[int] = set()
    for found in findings:
        chunks |= set(found.damaged or ()) if found else set()
    if not any(findings):
        chunks = set(range(origin.chunk_count))  # neither name is there
    return Damage(release.model, release.version, file.path, origin.digest, tuple(sorted(chunks)))


def _look(run: _Run, name: str, file: InstalledFile) -> _Finding | None:
    """What is under this name of the store; None if nothing or no regular file."""
    disk, path = run.store.disk, run.store.root / name
    with storage_errors("check a file", run.store.root):
        found = disk.lstat(path)
        if found is None or not S_ISREG(found.st_mode) or not _is_inside(run.store, path):
            return None
        key = (found.st_dev, found.st_ino, file.digest)
        if key not in run.seen:
            run.seen[key] = _Finding(None) if run.is_vouched(file.digest, found) else _hash(run, name, file)
    return run.seen[key]


def _is_inside(store: Store, path: Path) -> bool:
    """No folder of the version on the way to the file is a link that leads elsewhere."""
    own = (store.root, *(store.root / name for name in ("blobs", "versions")))
    return all(
        is_folder(store.disk, folder) for folder in path.parents if folder not in own and own[0] in folder.parents
    )


def _hash(run: _Run, name: str, file: InstalledFile) -> _Finding:
    from kensho.delivery.hashing import hash_spans

    spans, digests = _spans(run, file)
    disk = run.store.disk
    fd = disk.open_read(run.store.root / name)
    try:
        before = disk.fstat(fd)  # before hashing: a write in the middle of it must not be vouched for
        try:
            found = hash_spans(disk, fd, spans)
        except OSError as error:
            if error.errno != EIO:
                raise
            found = [_hash_one(run, fd, span) for span in spans]
    finally:
        disk.close(fd)
    run.bytes_hashed += min(before.st_size, file.size_bytes)
    damaged = tuple(index for index, (is_, ought) in enumerate(zip(found, digests, strict=True)) if is_ != ought)
    if damaged or before.st_size != file.size_bytes:
        run.bad.add((before.st_dev, before.st_ino))
        return _Finding(damaged)
    run.good.append(Record.of(file.digest, before, run.now))
    return _Finding(None)


def _hash_one(run: _Run, fd: int, span: tuple[int, int]) -> Digest:
    from kensho.delivery.hashing import hash_spans

    try:
        return hash_spans(run.store.disk, fd, [span])[0]
    except OSError as error:
        if error.errno != EIO:
            raise
        return Digest("")  # a sector that cannot be read is a damaged chunk


def _spans(run: _Run, file: InstalledFile) -> tuple[list[tuple[int, int]], list[Digest]]:
    """What to hash and what it should be: by chunk, or the whole file where the chunk list is damaged itself."""
    from kensho.delivery.inventory import chunks_of
    from kensho.delivery.staging import offsets

    try:
        chunks = chunks_of(run.store, file)
    except (Damaged, TrustError):
        return [(0, file.size_bytes)], [file.digest]
    return [(offset, chunk.size_bytes) for offset, chunk in offsets(chunks)], [chunk.digest for chunk in chunks]


def _check_documents(run: _Run, release: Release) -> Iterator[Damage]:
    """The manifest and the chunk lists: small, and hashed unless a record vouches."""
    documents = {"manifest.json": release.manifest} | {f"{f.path}.chunks": f.chunk_list for f in release.files}
    for name, digest in documents.items():
        if not _is_document_right(run, digest):
            yield Damage(release.model, release.version, name, digest, (), is_document=True)


def _is_document_right(run: _Run, digest: Digest) -> bool:
    path, disk = run.store.blob_path(digest), run.store.disk
    with storage_errors("check a document", run.store.root):
        found = disk.lstat(path)
    if found is None or not S_ISREG(found.st_mode):
        return False
    if run.is_vouched(digest, found):
        return True
    from kensho.delivery.chunk_list import MAX_LIST_BYTES

    try:
        run.store.document(digest, max_bytes=MAX_LIST_BYTES)
    except StorageError:  # Damaged is one
        run.bad.add((found.st_dev, found.st_ino))
        return False
    run.good.append(Record.of(digest, found, run.now))
    return True
