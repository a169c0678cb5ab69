"""Carry out a plan: copy and fetch chunks into staging; what is fetched is verified before it touches the disk.

Wrong bytes are not used: their source is blamed, the chunk is asked for again by itself, ATTEMPTS times in all, from
whoever has the fewest faults, and so is the rest of the range. When nothing but wrong bytes came (a broken proxy, a
poisoned mirror) MAX_WRONG such chunks end it, rather than three downloads of the whole model. A transport failure
(after all retries of the source) ends the fetching but not the copying; what arrived stays in staging. Nothing here
decides what that means for the model: see `updater`, `repair`.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import closing
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from threading import Lock, local
from typing import Protocol

from kensho.base.errors import DigestMismatch, NotFoundAtSource, TransportError
from kensho.base.events import ChunkRejected, DownloadProgress, Emit
from kensho.base.ids import Digest
from kensho.base.structs import Struct
from kensho.delivery.chunk_list import MAX_CHUNK_BYTES
from kensho.delivery.hashing import BLOCK_BYTES, THREADS
from kensho.delivery.layout import pack_path
from kensho.delivery.parallel import for_each
from kensho.delivery.plan import MAX_RANGE_BYTES, Copy, Fetch, Item, Plan
from kensho.delivery.sources import Source
from kensho.delivery.store import Store

ATTEMPTS = 3
"""A guess: the first answer, and two chances for a source (or its mirror) to do better."""


MAX_WRONG = 4
"""A guess."""


class Blame(Protocol):
    """Who gave the calling thread its last bytes (`sources.Failover`)."""

    def served_by(self) -> str: ...
    def blame(self) -> str: ...


class Outcome(Struct, frozen=False):
    """What came of a plan."""

    failed: dict[Digest, TransportError]
    """Chunks that could not be had, and why."""
    stale: set[Digest]
    """Chunks whose local copy could not be read: plan again without those places."""
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
        self._of_thread = local()

    def run(self, plan: Plan, names: Mapping[Digest, str]) -> Outcome:
        """Blocks until done. `names` has a path for each file's digest, for events.

        Raises StorageError (no space, I/O error), and whatever interrupts it; staging stays and serves the next run.
        """
        self._plan, self._names = plan, names
        self._outcome = Outcome({}, set(), {})
        self._accepted = self._wrong = 0
        self._done = plan.bytes_reuse - sum(copy.item.chunk.size_bytes * len(copy.item.slots) for copy in plan.copies)
        for file in plan.files:
            kept = [slot.index for slot in plan.kept if slot.file == file.digest]
            self._store.staging.prepare(file, kept)
        self._progress(0)
        # Fetches first: the hash of a file waits for its first chunk that is not there.
        threads = self._connections if plan.fetches else min(THREADS, self._connections)
        moves: list[Fetch | Copy] = [*plan.fetches, *plan.copies]
        for_each(moves, self._move, threads=threads)
        return self._outcome

    def _move(self, what: Fetch | Copy) -> None:
        if isinstance(what, Fetch):
            self._fetch(what)
        else:
            self._copy(what)

    # --- copies ---

    def _copy(self, copy: Copy) -> None:
        """Unchecked: the whole file is, before it gets its name (`sync` finds a copy that was wrong)."""
        disk, chunk, buffer = self._store.disk, copy.item.chunk, memoryview(self._memory().decoded)[:BLOCK_BYTES]
        try:
            source = disk.open_read(self._store.root / copy.source.path)
        except OSError:
            is_there = False  # gone or unreadable: as good as wrong, and the network has it
        else:
            try:
                is_there = all(
                    self._store.staging.copy(slot, chunk.size_bytes, source, copy.source.offset, buffer)
                    for slot in copy.item.slots
                )
            finally:
                disk.close(source)
        if is_there:
            self._note(copy.item, copy.source.path)
        else:
            with self._lock:
                self._outcome.stale.add(chunk.digest)

    # --- fetches ---

    def _fetch(self, fetch: Fetch) -> None:
        waiting = deque(fetch.items)
        try:
            while waiting and not self._is_halted:
                rejected = self._stream(waiting)
                if rejected:
                    self._ask_again(rejected)
        except NotFoundAtSource as error:
            self._fail(waiting, error)
        except TransportError as error:
            self._down = error
            self._fail(waiting, error)
        except BaseException:
            self._is_halted = True  # the other threads stop at their next piece
            raise

    def _ask_again(self, item: Item) -> None:
        """By itself, and from another source if there is one."""
        for _ in range(1, ATTEMPTS):
            waiting = deque([item])
            try:
                if self._stream(waiting) is None:
                    return
            except TransportError as error:
                self._fail([item], error)
                raise
        slot = item.slots[0]
        wrong = DigestMismatch(
            f"chunk {slot.index} of {self._names.get(slot.file, 'a file')} came wrong {ATTEMPTS} times",
            advice="try again later or from another source; nothing wrong was used",
            digest=item.chunk.digest,
        )
        self._fail([item], wrong)
        with self._lock:
            self._wrong += 1
            if self._wrong >= MAX_WRONG and not self._accepted:
                self._down = wrong

    def _stream(self, waiting: deque[Item]) -> Item | None:
        """One request for all that is waiting, from the first to the last. Takes each item off as soon as its last byte
        is here; stops at one that is wrong, and returns it."""
        if self._down or self._source is None:
            raise self._down or TransportError("there is no source", advice="name one")
        first, last = waiting[0].chunk, waiting[-1].chunk
        start, length = first.pack_offset, last.pack_offset + last.encoded_bytes - first.pack_offset
        memory, count = self._memory(), 0
        encoded = memoryview(memory.encoded)
        with closing(self._source.read_range(pack_path(first.pack), start, length)) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                encoded[count : count + len(piece)] = piece
                count += len(piece)
                while waiting and (end := _end(waiting[0]) - start) <= count:
                    item = waiting.popleft()
                    if not self._accept(item, encoded[end - item.chunk.encoded_bytes : end], memory.decoded):
                        return item
                if self._is_halted:
                    return None
        if waiting:
            raise TransportError(f"{self._source.name} ended a range too early", advice="try again later")
        return None

    def _memory(self) -> "_Memory":
        found: _Memory | None = getattr(self._of_thread, "memory", None)
        if found is None:
            found = self._of_thread.memory = _Memory()
        return found

    def _accept(self, item: Item, encoded: memoryview, scratch: mmap) -> bool:
        from kensho.delivery.packs import decode_chunk

        try:
            data = decode_chunk(encoded, item.chunk, scratch=scratch)
        except DigestMismatch:
            culprit = self._blame.blame() if self._blame else "the source"
            slot, digest = item.slots[0], item.chunk.digest
            path = self._names.get(slot.file, "")
            self._emit(ChunkRejected(source=culprit, path=path, chunk=slot.index, digest=digest))
            return False
        self._accepted += 1
        self._store_chunk(item, data, self._blame.served_by() if self._blame else "")
        return True

    # --- both ---

    def _store_chunk(self, item: Item, data: bytes | memoryview, origin: str) -> None:
        for slot in item.slots:
            self._store.staging.write(slot, data)
        self._note(item, origin)

    def _note(self, item: Item, origin: str) -> None:
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


class _Memory:
    """What one thread uses for all its ranges: memory that is new for each chunk costs more (the kernel zeroes it, page
    by page) than the network or the decoding. Mapped, so that the last page goes back when the thread has ended."""

    def __init__(self) -> None:
        self.encoded = mmap(-1, MAX_RANGE_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS)
        self.decoded = mmap(-1, MAX_CHUNK_BYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS)


def _end(item: Item) -> int:
    return item.chunk.pack_offset + item.chunk.encoded_bytes
