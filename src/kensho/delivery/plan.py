"""Decide which chunks to fetch, copy or keep. Pure: no disk, no network, no clock.

Install, update, start-up check, repair, prefetch, resume and rollback are this one function; only `have` differs.
Rules: (1) a chunk already verified where it belongs is kept; (2) verified bytes anywhere on this disk beat the
network; (3) a chunk that several places need is fetched once; (4) neighbours in a pack travel in one range, bounded in
gap and size; (5) a plan that needs more space than is free is refused before the first byte. `transfer` carries it out.
"""

from collections.abc import Iterable, Iterator, Mapping

from kensho.base.errors import NotEnoughSpace
from kensho.base.ids import Digest
from kensho.base.structs import Struct, field
from kensho.delivery.chunk_list import Chunk

MAX_GAP_BYTES = 32 << 10
"""Unwanted bytes between two chunks that are fetched along rather than asked around. A guess: less than what a link
of 5 Mbit/s carries in the 50 ms that another request costs."""
MAX_RANGE_BYTES = 8 << 20
"""Measured (design of delivery, section 3): 8 MiB ranges on 4 connections reach the socket limit."""
SPACE_MARGIN = 0.05
SPACE_EXTRA_BYTES = 1 << 20
"""For state, documents and the file system's own blocks. Item 18 of the design's list says 5 %; the MiB is a guess."""


class WantedFile(Struct):
    """A file to have as a whole verified blob."""

    digest: Digest
    size_bytes: int
    chunks: tuple[Chunk, ...]


class Place(Struct):
    """Bytes of this store that were verified when they were written: `path` relative to the store."""

    path: str
    offset: int


class Have(Struct):
    """What is on this disk already."""

    files: frozenset[Digest] = frozenset()
    """Whole blobs whose bytes are right."""
    staged: Mapping[Digest, frozenset[int]] = field(factory=dict)
    """Per unfinished file: indices of the chunks that are right in its staging file."""
    chunks: Mapping[Digest, tuple[Place, ...]] = field(factory=dict)
    """Where a chunk can be copied from, best place first. Copying checks the digest again, so a stale place costs time,
    not correctness."""


class Slot(Struct):
    """Where a chunk belongs: in the staging file of blob `file`, at `offset`."""

    file: Digest
    index: int
    offset: int


class Item(Struct):
    """One chunk and every slot that needs it."""

    chunk: Chunk
    slots: tuple[Slot, ...]


class Copy(Struct):
    source: Place
    item: Item


class Fetch(Struct):
    """One range of one pack. The items lie inside it in ascending order and do not overlap."""

    pack: Digest
    offset: int
    length: int
    items: tuple[Item, ...]


class Plan(Struct):
    """What to do, and what it costs."""

    model: str
    version: str
    files: tuple[WantedFile, ...]
    """Those that must be assembled; their slots are covered exactly once by `kept`, `copies` and `fetches`."""
    kept: tuple[Slot, ...]
    copies: tuple[Copy, ...]
    fetches: tuple[Fetch, ...]
    bytes_fetch: int
    """What will travel: encoded bytes, gaps inside ranges included."""
    bytes_reuse: int
    """Bytes of the wanted files that are here already (whole, staged or to be copied)."""
    bytes_total: int
    """Sizes of all wanted files, each digest once."""
    bytes_disk_needed: int
    bytes_disk_free: int

    @property
    def bytes_patch(self) -> int:
        """Encoded bytes of typed patches (row D10): none are published yet."""
        return 0

    @property
    def requests(self) -> int:
        return len(self.fetches)


def make_plan(
    model: str,
    version: str,
    want: Iterable[WantedFile],
    have: Have,
    *,
    free_bytes: int,
    reclaimable_bytes: int = 0,
    bytes_extra: int = 0,
) -> Plan:
    """The plan that turns `have` into all of `want`. O(n log n) in the number of chunks.

    `bytes_extra` is space needed besides the blobs (copies, where hard links are refused); `reclaimable_bytes`, what
    gc would free, is for the advice only. Raises NotEnoughSpace with the facts needed_bytes, free_bytes and
    reclaimable_bytes.
    """
    wanted = {file.digest: file for file in want}
    missing = tuple(file for digest, file in wanted.items() if digest not in have.files)
    kept: list[Slot] = []
    open_items: dict[Digest, tuple[Chunk, list[Slot]]] = {}
    for file in missing:
        staged = have.staged.get(file.digest, frozenset())
        for slot, chunk in _slots(file):
            if slot.index in staged:
                kept.append(slot)
            else:
                open_items.setdefault(chunk.digest, (chunk, []))[1].append(slot)
    items = [Item(chunk, tuple(slots)) for chunk, slots in open_items.values()]
    copies = tuple(
        Copy(have.chunks[item.chunk.digest][0], item) for item in items if have.chunks.get(item.chunk.digest)
    )
    fetches = tuple(_ranges(item for item in items if not have.chunks.get(item.chunk.digest)))
    bytes_open = sum(item.chunk.size_bytes * len(item.slots) for item in items)
    bytes_new = sum(item.chunk.size_bytes * len(item.slots) for fetch in fetches for item in fetch.items)
    total = sum(file.size_bytes for file in wanted.values())
    needed = _space_needed(bytes_open + bytes_extra)
    if needed > free_bytes:
        raise _no_space(model, version, needed, free_bytes, reclaimable_bytes)
    return Plan(
        model=model,
        version=version,
        files=missing,
        kept=tuple(kept),
        copies=copies,
        fetches=fetches,
        bytes_fetch=sum(fetch.length for fetch in fetches),
        bytes_reuse=total - bytes_new,
        bytes_total=total,
        bytes_disk_needed=needed,
        bytes_disk_free=free_bytes,
    )


def _slots(file: WantedFile) -> Iterator[tuple[Slot, Chunk]]:
    offset = 0
    for index, chunk in enumerate(file.chunks):
        yield Slot(file.digest, index, offset), chunk
        offset += chunk.size_bytes


def _ranges(items: Iterable[Item]) -> Iterator[Fetch]:
    """Items in ranges: ascending, gaps and sizes bounded; what would overlap starts a range of its own."""
    run: list[Item] = []
    for item in sorted(items, key=lambda item: (item.chunk.pack, item.chunk.pack_offset)):
        if run and not _fits(run, item.chunk):
            yield _fetch(run)
            run = []
        run.append(item)
    if run:
        yield _fetch(run)


def _fits(run: list[Item], chunk: Chunk) -> bool:
    first, last = run[0].chunk, run[-1].chunk
    gap = chunk.pack_offset - (last.pack_offset + last.encoded_bytes)
    size = chunk.pack_offset + chunk.encoded_bytes - first.pack_offset
    return chunk.pack == first.pack and 0 <= gap <= MAX_GAP_BYTES and size <= MAX_RANGE_BYTES


def _fetch(run: list[Item]) -> Fetch:
    first, last = run[0].chunk, run[-1].chunk
    length = last.pack_offset + last.encoded_bytes - first.pack_offset
    return Fetch(first.pack, first.pack_offset, length, tuple(run))


def _space_needed(bytes_new: int) -> int:
    return bytes_new + int(bytes_new * SPACE_MARGIN) + SPACE_EXTRA_BYTES if bytes_new else 0


def _no_space(model: str, version: str, needed: int, free: int, reclaimable: int) -> NotEnoughSpace:
    freed = f"`kensho gc` would free {reclaimable >> 20} MiB; " if reclaimable >> 20 else ""  # rounded down: a promise
    return NotEnoughSpace(
        f"not enough space for model {model!r} {version}: need {_mib(needed)}, have {_mib(free)} free",
        advice=f"{freed}free {_mib(needed - free)} more, or choose a store on a larger disk; nothing was fetched",
        needed_bytes=needed,
        free_bytes=free,
        reclaimable_bytes=reclaimable,
    )


def _mib(count: int) -> str:
    return f"{-(-count // (1 << 20))} MiB"  # rounded up: advice that is one byte short would be wrong
