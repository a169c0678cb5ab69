"""Carry out a plan: copy and fetch chunks into staging, each verified before it touches the disk.

Wrong bytes are not used: their source is blamed and the chunk is asked for again, apart, up to ATTEMPTS times, from
whoever has the fewest faults. A transport failure (after all retries of the source) ends the fetching but not the
copying; what arrived stays in staging. Nothing here decides what that means for the model: see `updater`, `checker`.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from kensho.base.errors import DigestMismatch, NotFoundAtSource, TransportError
from kensho.base.events import ChunkRejected, DownloadProgress, Emit
from kensho.base.ids import Digest, digest_of
from kensho.delivery.hashing import THREADS
from kensho.delivery.layout import pack_path
from kensho.delivery.parallel import for_each
from kensho.delivery.plan import Copy, Fetch, Item, Plan
from kensho.delivery.sources import Source
from kensho.delivery.store import Store

ATTEMPTS = 3
"""A guess: the first answer, and two chances for a source (or its mirror) to do better."""


class Blame(Protocol):
    """Who gave the calling thread its last bytes (`sources.Failover`)."""

    def served_by(self) -> str: ...
    def blame(self) -> str: ...


@dataclass(slots=True)
class Outcome:
    """What came of a plan."""

    failed: dict[Digest, TransportError]
    """Chunks that could not be had, and why."""
    stale: set[Digest]
    """Chunks whose local copy was not what it should be: plan again without those places."""
    origins: dict[Digest, str]
    """Chunks that are in staging now, and where they came from: a source's name, or a path of the store."""


class Transfer:
    """Moves chunks for one plan at a time. `source` None: nothing may be fetched, and `reason` says why."""

    def __init__(
        self,
        store: Store,
        source: Source | None,
        blame: Blame | None,
        *,
        emit: Emit,
        connections: int,
        reason: TransportError | None = None,
    ) -> None:
        self._store, self._source, self._blame, self._emit = store, source, blame, emit
        self._connections = connections
        self._down = reason
        self._is_halted = False
        self._lock = Lock()

    def run(self, plan: Plan, names: Mapping[Digest, str]) -> Outcome:
        """Blocks until done. `names` has a path for each file's digest, for events.

        Raises StorageError (no space, I/O error), and whatever interrupts it; staging stays and serves the next run.
        """
        self._plan, self._names = plan, names
        self._outcome = Outcome({}, set(), {})
        self._rejected: list[Item] = []
        self._done = plan.bytes_reuse - sum(copy.item.chunk.size_bytes * len(copy.item.slots) for copy in plan.copies)
        for file in plan.files:
            self._store.staging.prepare(file)
        self._progress(0)
        for_each(plan.copies, self._copy, threads=min(THREADS, self._connections))
        for_each(plan.fetches, self._fetch, threads=self._connections)
        for _ in range(1, ATTEMPTS):
            again, self._rejected = self._rejected, []
            for item in again:
                chunk = item.chunk
                self._fetch(Fetch(chunk.pack, chunk.pack_offset, chunk.encoded_bytes, (item,)))
        for item in self._rejected:
            self._fail([item], self._wrong(item))
        return self._outcome

    # --- copies ---

    def _copy(self, copy: Copy) -> None:
        chunk = copy.item.chunk
        data = self._read(copy)
        if data is None or digest_of(data) != chunk.digest:
            with self._lock:
                self._outcome.stale.add(chunk.digest)
            return
        self._store_chunk(copy.item, data, copy.source.path)

    def _read(self, copy: Copy) -> bytes | None:
        disk = self._store.disk
        buffer = bytearray(copy.item.chunk.size_bytes)
        try:
            fd = disk.open_read(self._store.root / copy.source.path)
            try:
                count = disk.read_into(fd, memoryview(buffer), copy.source.offset)
            finally:
                disk.close(fd)
        except OSError:
            return None  # gone or unreadable: as good as wrong, and the network has it
        return bytes(buffer) if count == len(buffer) else None

    # --- fetches ---

    def _fetch(self, fetch: Fetch) -> None:
        waiting = deque(fetch.items)
        if self._down or self._source is None:
            self._fail(waiting, self._down or TransportError("there is no source", advice="name one"))
            return
        try:
            self._stream(self._source, fetch, waiting)
        except NotFoundAtSource as error:
            self._fail(waiting, error)
        except TransportError as error:
            self._down = error
            self._fail(waiting, error)
        except BaseException:
            self._is_halted = True  # the other threads stop at their next piece
            raise

    def _stream(self, source: Source, fetch: Fetch, waiting: deque[Item]) -> None:
        """Takes each item off `waiting` as soon as its last byte is here."""
        buffer, start = bytearray(), fetch.offset
        with closing(source.read_range(pack_path(fetch.pack), fetch.offset, fetch.length)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                buffer += piece
                while waiting and waiting[0].chunk.pack_offset + waiting[0].chunk.encoded_bytes <= start + len(buffer):
                    item = waiting.popleft()
                    first = item.chunk.pack_offset - start
                    last = first + item.chunk.encoded_bytes
                    self._accept(item, bytes(memoryview(buffer)[first:last]))
                    del buffer[:last]
                    start += last
                if self._is_halted:
                    return

    def _accept(self, item: Item, encoded: bytes) -> None:
        from kensho.delivery.packs import decode_chunk

        try:
            data = decode_chunk(encoded, item.chunk)
        except DigestMismatch:
            culprit = self._blame.blame() if self._blame else "the source"
            slot = item.slots[0]
            self._emit(
                ChunkRejected(
                    source=culprit, path=self._names.get(slot.file, ""), chunk=slot.index, digest=item.chunk.digest
                )
            )
            with self._lock:
                self._rejected.append(item)
            return
        self._store_chunk(item, data, self._blame.served_by() if self._blame else "")

    # --- both ---

    def _store_chunk(self, item: Item, data: bytes, origin: str) -> None:
        for slot in item.slots:
            self._store.staging.write(slot, data)
        with self._lock:
            self._outcome.origins[item.chunk.digest] = origin
        self._progress(item.chunk.size_bytes * len(item.slots))

    def _progress(self, count: int) -> None:
        with self._lock:  # around emit too: progress never runs backwards
            self._done += count
            self._emit(DownloadProgress(model=self._plan.model, done=self._done, total=self._plan.bytes_total))

    def _fail(self, items: Iterable[Item], error: TransportError) -> None:
        with self._lock:
            for item in items:
                self._outcome.failed[item.chunk.digest] = error

    def _wrong(self, item: Item) -> DigestMismatch:
        slot = item.slots[0]
        return DigestMismatch(
            f"chunk {slot.index} of {self._names.get(slot.file, 'a file')} came wrong {ATTEMPTS} times",
            advice="try again later or from another source; nothing wrong was used",
            digest=item.chunk.digest,
        )
