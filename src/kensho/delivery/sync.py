"""Bring files into the store as verified blobs: inventory -> plan -> transfer -> finish. Install, update and repair.

What is wanted differs, what is had differs, the steps never do. The caller holds the store's lock, has accepted the
chunk lists, and decides what a file that could not be had means.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from kensho.base.clock import Clock
from kensho.base.errors import TransportError
from kensho.base.events import Emit, PlanMade
from kensho.base.ids import Digest
from kensho.delivery.installed import Record
from kensho.delivery.inventory import take_inventory
from kensho.delivery.plan import Have, Plan, WantedFile, make_plan
from kensho.delivery.retention import reclaimable_bytes
from kensho.delivery.store import Store
from kensho.delivery.transfer import Outcome, Transfer


@dataclass(frozen=True, slots=True)
class Brought:
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
    have, origins, outcome = inventory.have, dict[Digest, str](), Outcome({}, set(), {})
    while plan.files:
        outcome = transfer.run(plan, names)
        origins |= outcome.origins
        if not outcome.stale:
            break
        have = _after(have, plan, outcome)  # has fewer places each time, so this ends
        plan = plan_files(store, model, version, list(want.values()), have)
    records = list(inventory.records)
    failed: dict[Digest, TransportError] = {}
    for file in first.files:
        error = next((outcome.failed[chunk.digest] for chunk in file.chunks if chunk.digest in outcome.failed), None)
        if error:
            failed[file.digest] = error
        else:
            records.append(store.staging.finish(file, store.blob_path(file.digest), now=clock.wall_s()))
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


def _after(have: Have, plan: Plan, outcome: Outcome) -> Have:
    """What is had now: all slots of the plan but the stale and the failed ones; the place that was stale is none."""
    absent = outcome.stale | set(outcome.failed)
    staged = {
        file.digest: frozenset(index for index, chunk in enumerate(file.chunks) if chunk.digest not in absent)
        for file in plan.files
    }
    chunks = {d: places[1:] if d in outcome.stale else places for d, places in have.chunks.items()}
    return replace(have, staged=staged, chunks=chunks)
