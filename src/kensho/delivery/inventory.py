"""What of the wanted files is on this disk already: whole, in staging, or as chunks of other files.

Only bytes that were hashed now, or that a verification record vouches for, count as whole or staged. Chunks of other
installed files, and what a check left of a damaged blob, are offered unseen: who copies them hashes them on the way.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from os import stat_result
from stat import S_ISREG

from kensho.base.clock import Seconds
from kensho.base.errors import Damaged, TrustError
from kensho.base.ids import Digest
from kensho.base.structs import Struct, field
from kensho.delivery.chunk_list import MAX_LIST_BYTES, Chunk, parse_chunk_records
from kensho.delivery.disk import storage_errors
from kensho.delivery.hashing import hash_spans
from kensho.delivery.installed import InstalledFile, Record
from kensho.delivery.plan import Have, Place, WantedFile
from kensho.delivery.staging import offsets
from kensho.delivery.store import Store

MAX_PLACES = 4
"""Tried for one chunk before it is fetched. A guess: current version, previous version, another model, staging."""

Places = dict[Digest, tuple[Place, ...]]
WrongChunks = dict[tuple[int, int], Collection[int]]
"""Per inode (device and number): indices of chunks that are not worth copying."""


class Inventory(Struct, frozen=False):
    """`have` for the plan; `records` vouch for the whole files in it."""

    have: Have
    records: list[Record] = field(factory=list)


def take_inventory(
    store: Store, want: Sequence[WantedFile], *, now: Seconds, damaged: Mapping[Digest, Collection[int]] | None = None
) -> Inventory:
    """Looks at the blobs, staging and other installed files. Hashes what nothing vouches for (about 3 GB/s), but for
    blobs that a check has just found `damaged`: the indices of their wrong chunks are taken as given.

    Needs no lock; without it, what is found may be gone when it is used. StorageError if the disk cannot be read.
    """
    known = store.state.records()
    whole: set[Digest] = set()
    records: list[Record] = []
    places: Places = {}
    wrong: WrongChunks = {}
    for file in want:
        record = _check_blob(store, file, known, places, wrong, damaged=(damaged or {}).get(file.digest, ()), now=now)
        if record:
            whole.add(file.digest)
            records.append(record)
    missing = [file for file in want if file.digest not in whole]
    staged: dict[Digest, frozenset[int]] = {}
    for file in missing:
        staged[file.digest] = store.staging.verified(file)
        for index, (offset, chunk) in enumerate(offsets(file.chunks)):
            if index in staged[file.digest]:
                _offer(places, chunk.digest, store.staging.place(file.digest, offset))
    if missing:
        _offer_installed(store, places, wrong)
    return Inventory(Have(files=frozenset(whole), staged=staged, chunks=places), records)


def chunks_of(store: Store, file: InstalledFile) -> tuple[Chunk, ...]:
    """The chunks of an installed file, from the list kept at acceptance. Damaged if that list is."""
    data = store.document(file.chunk_list, max_bytes=MAX_LIST_BYTES)
    return parse_chunk_records(data, file.size_bytes).chunks


def _check_blob(
    store: Store,
    file: WantedFile,
    known: Mapping[tuple[int, int], Record],
    places: Places,
    wrong: WrongChunks,
    *,
    damaged: Collection[int],
    now: Seconds,
) -> Record | None:
    """A record if the whole blob is right; else its good chunks become places to copy from, and the others `wrong`."""
    path = store.blob_path(file.digest)
    with storage_errors("read a blob", store.root):
        found = store.disk.lstat(path)
        if found is None or not S_ISREG(found.st_mode):
            return None
        record = known.get((found.st_dev, found.st_ino))
        if record and record.vouches_for(file.digest, found, now=now):
            return record
        if not damaged:
            found, damaged = _hash_blob(store, file)
    for index, (offset, chunk) in enumerate(offsets(file.chunks)):
        if index not in damaged:
            _offer(places, chunk.digest, Place(f"blobs/{file.digest}", offset))
    wrong[found.st_dev, found.st_ino] = damaged
    return None if damaged or found.st_size != file.size_bytes else Record.of(file.digest, found, now)


def _hash_blob(store: Store, file: WantedFile) -> tuple[stat_result, frozenset[int]]:
    """What the kernel says of the blob, and the indices of its wrong chunks."""
    fd = store.disk.open_read(store.blob_path(file.digest))
    try:
        before = store.disk.fstat(fd)  # before hashing: a write in the middle of it must not be vouched for
        digests = hash_spans(store.disk, fd, [(offset, chunk.size_bytes) for offset, chunk in offsets(file.chunks)])
    finally:
        store.disk.close(fd)
    pairs = zip(file.chunks, digests, strict=True)
    return before, frozenset(index for index, (chunk, digest) in enumerate(pairs) if digest != chunk.digest)


def _offer_installed(store: Store, places: Places, wrong: WrongChunks) -> None:
    """Chunks of every file of every installed version. By its version's name, which is there even if the blob is not,
    and which is another file than the blob where hard links are refused."""
    for name, file in _installed_files(store):
        if file.used != file.digest:
            continue
        try:
            chunks = chunks_of(store, file)
        except (Damaged, TrustError):
            continue  # verify reports it; here it only means fewer places
        with storage_errors("look at a file", store.root):
            found = store.disk.lstat(store.root / name)
        bad = wrong.get((found.st_dev, found.st_ino), ()) if found else range(len(chunks))
        for index, (offset, chunk) in enumerate(offsets(chunks)):
            if index not in bad:
                _offer(places, chunk.digest, Place(name, offset))


def _offer(places: Places, digest: Digest, place: Place) -> None:
    found = places.get(digest, ())
    if len(found) < MAX_PLACES:
        places[digest] = (*found, place)


def _installed_files(store: Store) -> Iterator[tuple[str, InstalledFile]]:
    for release in store.state.releases():
        for file in release.files:
            yield f"versions/{release.model}/{release.version}/{file.path}", file
