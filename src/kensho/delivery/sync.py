"""Bring files into the store as verified blobs: inventory -> plan -> transfer -> finish. Install, update and repair.

What is wanted differs, what is had differs, the steps never do. A copy is not hashed by itself: the file is, as a
whole; if it is not right, the wrong copies are found, and come from elsewhere. The caller holds the store's lock, has
accepted the chunk lists, and decides what a file that could not be had means.
"""

from collections.abc import Collection, Mapping, Sequence, Set

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import Damaged, TransportError
from kensho.base.events import Emit, PlanMade
from kensho.base.ids import Digest
from kensho.base.structs import Struct, replace
from kensho.delivery.installed import Record
from kensho.delivery.inventory import take_inventory
from kensho.delivery.plan import Have, Plan, WantedFile, make_plan
from kensho.delivery.retention import reclaimable_bytes
from kensho.delivery.store import Store
from kensho.delivery.transfer import Outcome, Transfer


class Brought(Struct):
    """Wanted files that are whole blobs now (`records` vouch for them), and those that could not be had."""

    plan: Plan
    """The first one: what was expected to travel."""
    records: tuple[Record, ...]
    failed: Mapping[Digest, TransportError]
    """By file digest."""
    origins: Mapping[Digest, str]
    """By chunk digest: where each chunk that had to be moved came from."""


def bring(
    store: Store,
    model: str,
    version: str,
    want: Mapping[str, WantedFile],
    transfer: Transfer,
    *,
    clock: Clock,
    emit: Emit,
    damaged: Mapping[Digest, Collection[int]] | None = None,
) -> Brought:
    """Every file of `want` (by path), as far as it can be had. Raises NotEnoughSpace before the first byte, and
    StorageError; whatever happens, blobs that were there are untouched and staging can be used again. `damaged`: see
    `take_inventory`."""
    inventory = take_inventory(store, list(want.values()), now=clock.wall_s(), damaged=damaged)
    plan = first = plan_files(store, model, version, list(want.values()), inventory.have)
    emit(
        PlanMade(
            model=model,
            version=version,
            bytes_fetch=plan.bytes_fetch,
            bytes_reuse=plan.bytes_reuse,
            requests=plan.requests,
        )
    )
    names = {file.digest: path for path, file in want.items()}
    have, records = inventory.have, list(inventory.records)
    origins, failed, copied = dict[Digest, str](), dict[Digest, TransportError](), set[Digest]()
    try:
        while plan.files:  # each time there are fewer places to copy from, or nothing is left to do
            outcome = transfer.run(plan, names)
            origins |= outcome.origins
            copied |= {copy.item.chunk.digest for copy in plan.copies}
            copied -= {item.chunk.digest for fetch in plan.fetches for item in fetch.items}
            have, wrong = _after(have, plan, outcome), outcome.stale
            if not wrong:
                failed = {file.digest: error for file in plan.files if (error := _failure(file, outcome))}
                for file in plan.files:
                    if file.digest not in failed:
                        have, found = _finish(store, file, have, copied, records, now=clock.wall_s())
                        wrong |= found
            if not wrong:
                break
            chunks = {digest: places[1:] if digest in wrong else places for digest, places in have.chunks.items()}
            have = replace(have, chunks=chunks)
            plan = plan_files(store, model, version, list(want.values()), have)
    finally:
        store.staging.release()
    return Brought(first, tuple(records), failed, origins)


def plan_files(store: Store, model: str, version: str, want: Sequence[WantedFile], have: Have) -> Plan:
    """The plan for these files on this store's disk, with the space that copies need where hard links are refused."""
    is_missing = any(file.digest not in have.files for file in want)
    extra = 0 if not is_missing or store.is_read_only or store.versions.has_links() else sum(f.size_bytes for f in want)
    return make_plan(
        model,
        version,
        want,
        have,
        free_bytes=store.free_bytes(),
        bytes_extra=extra,
        reclaimable_bytes=reclaimable_bytes(store),
    )


def _failure(file: WantedFile, outcome: Outcome) -> TransportError | None:
    return next((outcome.failed[chunk.digest] for chunk in file.chunks if chunk.digest in outcome.failed), None)


def _finish(
    store: Store, file: WantedFile, have: Have, copied: Set[Digest], records: list[Record], *, now: Seconds
) -> tuple[Have, set[Digest]]:
    """The file as a blob, or the chunks that were copied wrong. Damaged if others are wrong: the disk's fault."""
    try:
        records.append(store.staging.finish(file, store.blob_path(file.digest), now=now))
    except Damaged:
        right = store.staging.verified(file)
        wrong = {chunk.digest for index, chunk in enumerate(file.chunks) if index not in right}
        if not wrong <= copied:
            raise
        return replace(have, staged={**have.staged, file.digest: right}), wrong
    return replace(have, files=have.files | {file.digest}), set()


def _after(have: Have, plan: Plan, outcome: Outcome) -> Have:
    """What is had now: all slots of the plan but the stale and the failed ones."""
    absent = outcome.stale | set(outcome.failed)
    staged = {
        file.digest: frozenset(index for index, chunk in enumerate(file.chunks) if chunk.digest not in absent)
        for file in plan.files
    }
    return replace(have, staged={**have.staged, **staged})
