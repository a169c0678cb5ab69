"""Bring models to their newest version: refresh, accept, plan, fetch, commit, switch. (Prototype: StorageManager.)

Each model ends as `updated`, `current`, `degraded` (row D8: an optional file is absent or a fallback stands in) or
`failed`; a failure of one model does not touch another, and whatever fails, the installed version stays current and
untouched. Blocking code with a small thread pool; Ctrl-C and SIGKILL are safe at any moment, and the next run goes on
from the chunks that are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from kensho.base.backoff import Rng
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import DigestMismatch, KenshoError, NotFoundAtSource, NotInstalled
from kensho.base.events import Emit, FallbackActivated, UpdateApplied
from kensho.base.ids import Digest
from kensho.delivery.acceptance import Acceptance, AcceptedRelease, SignedReleases, decide_files
from kensho.delivery.installed import InstalledFile, Record, Release
from kensho.delivery.inventory import take_inventory
from kensho.delivery.plan import Plan
from kensho.delivery.releases import ReleaseRef
from kensho.delivery.sources import Source, dependable
from kensho.delivery.store import Store
from kensho.delivery.sync import Brought, bring, plan_files
from kensho.delivery.transfer import Transfer

PullState = Literal["updated", "current", "degraded", "failed"]


@dataclass(frozen=True, slots=True)
class ModelResult:
    """How the pull of one model ended. `version` is the one that is current now; empty if none is."""

    model: str
    version: str
    state: PullState
    error: KenshoError | None = None
    """Why it failed."""
    reason: str = ""
    """Why it failed or is degraded, in words."""


@dataclass(frozen=True, slots=True)
class PullReport:
    """`bytes_fetched` and `requests` count every response body and request, those for metadata included."""

    models: tuple[ModelResult, ...]
    bytes_fetched: int
    bytes_reused: int
    """Bytes of updated models that were on this disk already."""
    bytes_patched: int
    requests: int
    requests_metadata: int
    seconds: Seconds

    @property
    def first_error(self) -> KenshoError | None:
        return next((result.error for result in self.models if result.error), None)


class Updater:
    """Updates one store from one or several equal sources. Not thread-safe; other processes are kept out by the lock.

    `client_version` is this Kensho's own, for row D14. `connections` is the number of ranges in flight.
    """

    def __init__(
        self,
        store: Store,
        signed: SignedReleases,
        sources: Sequence[Source],
        *,
        client_version: str,
        emit: Emit,
        clock: Clock,
        rng: Rng,
        connections: int = 4,
    ) -> None:
        self._store, self._signed = store, signed
        self._source, self._failover = dependable(sources, emit=emit, clock=clock, rng=rng)
        self._client_version, self._emit, self._clock, self._connections = client_version, emit, clock, connections

    def plan(self, models: Sequence[str] = ()) -> list[Plan]:
        """What a pull would do, without doing it; metadata is refreshed. Raises what stands in the way of any model."""
        self._signed.refresh(self._source)
        acceptance = self._acceptance()
        plans = []
        for ref in self._choose(models):
            accepted = self._accept(acceptance, ref)
            want = list(accepted.want.values())
            have = take_inventory(self._store, want, now=self._clock.wall_s()).have
            plans.append(plan_files(self._store, ref.model, ref.version, want, have))
        return plans

    def pull(self, models: Sequence[str] = ()) -> PullReport:
        """Bring the models (all installed ones if none is named) to the newest version.

        Raises TrustError or TransportError if the metadata could not be refreshed, NotInstalled for an unknown name,
        StoreBusy, StorageError: nothing was changed then. What goes wrong with one model is in its result.
        """
        start_s = self._clock.monotonic_s()
        bytes_before, requests_before = self._source.bytes_fetched, self._source.requests
        self._requests_metadata = self._bytes_reused = 0
        with self._store.writing():
            self._signed.refresh(self._source)
            self._requests_metadata += self._source.requests - requests_before
            acceptance = self._acceptance()
            results = tuple(self._pull(acceptance, ref) for ref in self._choose(models))
        return PullReport(
            models=results,
            bytes_fetched=self._source.bytes_fetched - bytes_before,
            bytes_reused=self._bytes_reused,
            bytes_patched=0,
            requests=self._source.requests - requests_before,
            requests_metadata=self._requests_metadata,
            seconds=self._clock.monotonic_s() - start_s,
        )

    # --- which releases ---

    def _choose(self, models: Sequence[str]) -> list[ReleaseRef]:
        """The release to bring for each model: the pinned one, else the newest."""
        offered: dict[str, list[ReleaseRef]] = {}
        for ref in self._signed.releases():
            offered.setdefault(ref.model, []).append(ref)
        rows = {row.model: row for row in self._store.state.models()}
        names = list(dict.fromkeys(models)) or sorted(rows) or (list(offered) if len(offered) == 1 else [])
        available = ", ".join(sorted(offered)) or "none"
        if not names:
            raise NotInstalled("no model is installed and none is named", advice=f"name one of: {available}")
        chosen = []
        for name in names:
            pinned = rows[name].pinned if name in rows else None
            refs = [ref for ref in offered.get(name, []) if pinned in (None, ref.version)]
            if not refs:
                what = (
                    f"model {name!r}"
                    if pinned is None
                    else f"version {pinned!r} of model {name!r}, to which it is pinned"
                )
                raise NotInstalled(f"{what} is not published here", advice=f"name one of: {available}")
            chosen.append(max(refs, key=lambda ref: ref.release))
        return chosen

    def _acceptance(self) -> Acceptance:
        return Acceptance(
            self._store,
            self._signed,
            self._source,
            self._failover,
            client_version=self._client_version,
            emit=self._emit,
            connections=self._connections,
        )

    def _accept(self, acceptance: Acceptance, ref: ReleaseRef) -> AcceptedRelease:
        rows = {row.model: row for row in self._store.state.models()}
        is_pinned = ref.model in rows and rows[ref.model].pinned == ref.version
        return acceptance.accept(ref, self._store.state.releases(ref.model), is_pinned=is_pinned)

    # --- one model ---

    def _pull(self, acceptance: Acceptance, ref: ReleaseRef) -> ModelResult:
        before = self._source.requests
        try:
            try:
                accepted = self._accept(acceptance, ref)
            finally:
                self._requests_metadata += self._source.requests - before
            return self._install(acceptance, accepted)
        except KenshoError as error:
            current = next((row.current for row in self._store.state.models() if row.model == ref.model), "")
            return ModelResult(ref.model, current, "failed", error, error.message)

    def _install(self, acceptance: Acceptance, accepted: AcceptedRelease) -> ModelResult:
        ref, fetched_before = accepted.ref, self._source.bytes_fetched
        transfer = Transfer(self._store, self._source, self._failover, emit=self._emit, connections=self._connections)
        brought = bring(
            self._store, ref.model, ref.version, accepted.want, transfer, clock=self._clock, emit=self._emit
        )
        decided = decide_files(accepted, self._answers(brought))
        release = self._release(accepted, decided)
        is_changed = self._commit(acceptance, accepted, release, brought.records)
        if is_changed:
            reused = brought.plan.bytes_reuse
            self._bytes_reused += reused
            fetched = self._source.bytes_fetched - fetched_before
            self._emit(UpdateApplied(model=ref.model, version=ref.version, bytes_fetched=fetched, bytes_reused=reused))
        if release.is_degraded:
            absent = ", ".join(file.path for file in release.files if file.used != file.digest)
            return ModelResult(ref.model, ref.version, "degraded", reason=f"without {absent}")
        return ModelResult(ref.model, ref.version, "updated" if is_changed or brought.plan.files else "current")

    def _answers(self, brought: Brought) -> Mapping[Digest, KenshoError]:
        """Files that the sources do not have, or only wrong. Any other failure may pass: raised, to be resumed."""
        for error in brought.failed.values():
            if not isinstance(error, NotFoundAtSource | DigestMismatch):
                raise error
        return brought.failed

    def _release(self, accepted: AcceptedRelease, decided: Mapping[str, tuple[Digest | None, str | None]]) -> Release:
        files = tuple(
            InstalledFile(
                path=file.path,
                size_bytes=file.size_bytes,
                digest=file.digest,
                chunk_list=file.chunk_list,
                chunk_count=len(accepted.want[file.path].chunks),
                is_required=file.is_required,
                used=decided[file.path][0],
                reason=decided[file.path][1],
            )
            for file in sorted(accepted.manifest.files, key=lambda file: file.path)
        )
        ref = accepted.ref
        return Release(ref.model, ref.version, ref.release, ref.digest, self._clock.wall_s(), files)

    def _commit(
        self, acceptance: Acceptance, accepted: AcceptedRelease, release: Release, records: Sequence[Record]
    ) -> bool:
        """Everything that makes the release the current one; the last step is the one that counts. False if it was."""
        acceptance.keep(accepted)
        names = {file.path: file.used for file in release.files if file.used}
        now = self._clock.wall_s()
        vouched = self._store.versions.publish(release.model, release.version, names, records, now=now)
        row = next((row for row in self._store.state.models() if row.model == release.model), None)
        known = [r for r in self._store.state.releases(release.model) if r.version == release.version]
        if row and row.current == release.version and known and known[0].files == release.files:
            self._store.state.put_records(vouched)
            return False
        self._store.state.install(release, vouched, now=now)
        by_digest = {file.digest: file.path for file in release.files}
        for file in release.files:
            if file.used != file.digest:
                fallback = by_digest[file.used] if file.used else "nothing (it is optional)"
                self._emit(
                    FallbackActivated(model=release.model, path=file.path, fallback=fallback, reason=file.reason or "")
                )
        return True
