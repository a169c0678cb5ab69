"""Mend what a check found: only the damaged chunks move, from this disk if they are anywhere on it, else from a source.

A new file is built in staging from the good chunks of the damaged one and the missing ones, verified whole, and put in
place by renames: who has the damaged file open keeps it, and no reader ever sees a file in between. The chunk lists
kept at acceptance say what is right and where it lies in the repository, so no metadata is refreshed. (Prototype: the
self-repair of StorageManager.)
"""

from collections.abc import Sequence

from kensho.base.backoff import Rng
from kensho.base.clock import Clock
from kensho.base.errors import Damaged, DigestMismatch, KenshoError, NetworkNotAllowed, TransportError, TrustError
from kensho.base.events import ChunkRepaired, Emit
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import Struct
from kensho.delivery.checker import Damage, check_version
from kensho.delivery.chunk_list import MAX_LIST_BYTES
from kensho.delivery.installed import Release
from kensho.delivery.inventory import chunks_of
from kensho.delivery.layout import chunk_list_target, manifest_target, target_path
from kensho.delivery.plan import WantedFile
from kensho.delivery.sources import Failover, Retrying, Source, dependable
from kensho.delivery.store import Store
from kensho.delivery.sync import Brought, bring
from kensho.delivery.transfer import ATTEMPTS, Transfer


class RepairReport(Struct):
    repaired_chunks: int
    """Damaged chunks that are right again; one that several versions share counts once."""
    bytes_fetched: int
    """Bytes of every response body."""
    unrepaired: tuple[str, ...]
    """`MODEL VERSION PATH` of what is still damaged."""
    error: KenshoError | None
    """Why, for the first of them."""


class Repairer:
    """Mends one store. `sources` may be empty: then only what this disk has can be used, and `reason` says why."""

    def __init__(
        self,
        store: Store,
        sources: Sequence[Source],
        *,
        emit: Emit,
        clock: Clock,
        rng: Rng,
        connections: int = 4,
        reason: TransportError | None = None,
    ) -> None:
        self._store, self._emit, self._clock, self._connections = store, emit, clock, connections
        self._source: Retrying | None = None
        self._failover: Failover | None = None
        if sources:
            self._source, self._failover = dependable(sources, emit=emit, clock=clock, rng=rng)
        self._reason = reason or NetworkNotAllowed("there is no source to fetch from", advice="name one and allow it")

    def repair(self, damaged: Sequence[Damage]) -> RepairReport:
        """Mends what it can of `damaged` (as `checker` reported it). Blocks.

        Raises StoreBusy, StorageError, NotEnoughSpace; what was good stays good, and running it again goes on.
        """
        before = self._source.bytes_fetched if self._source else 0
        errors: dict[Damage, KenshoError] = {}
        with self._store.writing():
            files = self._mend_documents(damaged, errors)
            chunks = self._mend_files(files, errors)
        fetched = (self._source.bytes_fetched if self._source else 0) - before
        unrepaired = tuple(dict.fromkeys(f"{d.model} {d.version} {d.path}" for d in errors))
        return RepairReport(chunks, fetched, unrepaired, next(iter(errors.values()), None))

    # --- documents: without its chunk list a file cannot be mended ---

    def _mend_documents(self, damaged: Sequence[Damage], errors: dict[Damage, KenshoError]) -> list[Damage]:
        """Fetches damaged documents, then looks again at the versions they belong to. Returns damaged files."""
        documents = [damage for damage in damaged if damage.is_document]
        for damage in documents:
            try:
                self._store.put_document(self._document(damage))
            except (TransportError, TrustError) as error:
                errors[damage] = error
        again = {(damage.model, damage.version) for damage in documents}
        files = [d for d in damaged if not d.is_document and (d.model, d.version) not in again]
        for model, version in sorted(again):
            files.extend(check_version(self._store, model, version, clock=self._clock, emit=self._emit).damaged)
        return files

    def _document(self, damage: Damage) -> bytes:
        if self._source is None or self._failover is None:
            raise self._reason
        target = (
            manifest_target(damage.model, damage.version)
            if damage.path == "manifest.json"
            else chunk_list_target(damage.model, damage.digest)
        )
        for _ in range(ATTEMPTS):
            data = self._source.read(target_path(target, damage.digest), max_bytes=MAX_LIST_BYTES)
            if digest_of(data) == damage.digest:
                return data
            self._failover.blame()
        raise DigestMismatch(f"no source has the right bytes of {damage.path}", advice="try again later")

    # --- files ---

    def _mend_files(self, damaged: Sequence[Damage], errors: dict[Damage, KenshoError]) -> int:
        by_version: dict[tuple[str, str], list[Damage]] = {}
        for damage in damaged:
            by_version.setdefault((damage.model, damage.version), []).append(damage)
        mended: set[tuple[Digest, int]] = set()
        for (model, version), damages in by_version.items():
            release = self._store.release(model, version)
            want = self._wanted(release, damages, errors)
            transfer = Transfer(
                self._store,
                self._source,
                self._failover,
                emit=self._emit,
                connections=self._connections,
                reason=None if self._source else self._reason,
            )
            known = {damage.digest: damage.chunks for damage in damages if damage.path in want}
            brought = bring(
                self._store, model, version, want, transfer, clock=self._clock, emit=self._emit, damaged=known
            )
            errors |= {d: brought.failed[d.digest] for d in damages if d.digest in brought.failed}
            self._put_in_place(release, want, brought)
            for damage in damages:
                if damage not in errors:
                    mended |= self._tell(damage, want, brought)
        return len(mended)

    def _wanted(
        self, release: Release, damages: Sequence[Damage], errors: dict[Damage, KenshoError]
    ) -> dict[str, WantedFile]:
        """What must be there, by path."""
        origins = {file.digest: file for file in release.files}
        want: dict[str, WantedFile] = {}
        for damage in damages:
            file = origins[damage.digest]
            try:
                want[damage.path] = WantedFile(file.digest, file.size_bytes, chunks_of(self._store, file))
            except (Damaged, TrustError) as error:
                errors[damage] = error
        return want

    def _put_in_place(self, release: Release, want: dict[str, WantedFile], brought: Brought) -> None:
        """The version's names lead to the mended blobs. Other versions that share a blob are in the damage too."""
        folder = self._store.versions.path(release.model, release.version)
        is_there = self._store.disk.lstat(folder) is not None
        names = {
            file.path: file.used
            for file in release.files
            if file.used and file.used not in brought.failed and (file.path in want or not is_there)
        }
        now = self._clock.wall_s()
        vouching = [*self._store.state.records().values(), *brought.records]  # the later ones count
        records = self._store.versions.publish(release.model, release.version, names, vouching, now=now)
        self._store.state.put_records(records)
        fixed = {file.digest: f"{release.model} {release.version}" for file in brought.plan.files}
        self._store.state.note(
            {digest: how for digest, how in fixed.items() if digest not in brought.failed}, "repaired", now=now
        )

    def _tell(self, damage: Damage, want: dict[str, WantedFile], brought: Brought) -> set[tuple[Digest, int]]:
        mended = set()
        for index in damage.chunks:
            chunk = want[damage.path].chunks[index]
            source = brought.origins.get(chunk.digest)
            if source is None:
                continue  # another version that shares the blob was mended before this one
            mended.add((damage.digest, index))
            self._emit(ChunkRepaired(path=damage.path, chunk=index, size_bytes=chunk.size_bytes, source=source))
        return mended
