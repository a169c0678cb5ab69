"""Bring models to their newest version: refresh, accept, plan, fetch, commit, switch. (Prototype: StorageManager.)

Each model ends as `updated`, `current`, `degraded` (row D8: an optional file is absent, a fallback stands in, or an
optional model cannot be had) or `failed`; a failure of one model does not touch another, and whatever fails, the
installed version stays current and untouched. What a model lacks is noted in the state, with since when and what would
end it. Old versions go as `retention` says. Blocking code with a small thread pool; Ctrl-C and SIGKILL are safe at any
moment, and the next run goes on from the chunks that are there.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from kensho.base.backoff import Rng
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import (
    DigestMismatch,
    KenshoError,
    NotEnoughSpace,
    NotFoundAtSource,
    NotInstalled,
    StorageError,
    TrustError,
)
from kensho.base.events import Emit, FallbackActivated, ModelUnavailable, UpdateApplied
from kensho.base.ids import Digest
from kensho.base.structs import Struct, replace
from kensho.delivery.acceptance import Acceptance, AcceptedRelease, SignedReleases, decide_files
from kensho.delivery.choosing import Candidates, choose
from kensho.delivery.installed import InstalledFile, Record, Release, Shortfall
from kensho.delivery.inventory import take_inventory
from kensho.delivery.plan import Plan
from kensho.delivery.releases import ReleaseRef
from kensho.delivery.retention import collect, needed_versions
from kensho.delivery.sources import Source, dependable
from kensho.delivery.store import Store
from kensho.delivery.sync import Brought, bring, plan_files
from kensho.delivery.transfer import Transfer

PullState = Literal["updated", "current", "degraded", "failed"]


class ModelResult(Struct):
    """How the pull of one model ended. `version` is the one that is current now; empty if none is."""

    model: str
    version: str
    state: PullState
    error: KenshoError | None = None
    """Why it failed."""
    reason: str = ""
    """Why it failed, is degraded or stays as it is, in words."""


class PullReport(Struct):
    """`bytes_fetched` and `requests` count every response body and request, those for metadata included."""

    models: tuple[ModelResult, ...]
    bytes_fetched: int
    bytes_reused: int
    """Bytes of updated models that were on this disk already."""
    bytes_patched: int
    requests: int
    requests_metadata: int
    seconds: Seconds
    bytes_freed: int = 0
    """Of versions that nothing needs any more."""

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
        """What a pull would do, without doing it; metadata is refreshed. Raises what stands in the way of any model.

        A model that would stay as it is because nothing newer is meant for this machine has no plan.
        """
        self._signed.refresh(self._source)
        acceptance = self._acceptance()
        plans = []
        for candidates in self._choose(models):
            accepted = self._take(acceptance, candidates)
            if accepted:
                ref, want = accepted.ref, list(accepted.want.values())
                have = take_inventory(self._store, want, now=self._clock.wall_s()).have
                plans.append(plan_files(self._store, ref.model, ref.version, want, have))
        return plans

    def pull(self, models: Sequence[str] = ()) -> PullReport:
        """Bring the models (all installed ones, and those that could not be had before, if none is named) to the
        newest version that this machine may take.

        Raises TrustError or TransportError if the metadata could not be refreshed, NotInstalled for an unknown name,
        StoreBusy, StorageError: nothing was changed then. What goes wrong with one model is in its result.
        """
        start_s = self._clock.monotonic_s()
        bytes_before, requests_before = self._source.bytes_fetched, self._source.requests
        self._requests_metadata = self._bytes_reused = self._bytes_freed = 0
        with self._store.writing():
            needed_before = needed_versions(self._store)
            self._signed.refresh(self._source)
            self._requests_metadata += self._source.requests - requests_before
            acceptance = self._acceptance()
            results = tuple(self._pull(acceptance, candidates) for candidates in self._choose(models))
            if any(result.state == "updated" for result in results):
                self._collect(also_keep=needed_before)
        return PullReport(
            models=results,
            bytes_fetched=self._source.bytes_fetched - bytes_before,
            bytes_reused=self._bytes_reused,
            bytes_patched=0,
            requests=self._source.requests - requests_before,
            requests_metadata=self._requests_metadata,
            seconds=self._clock.monotonic_s() - start_s,
            bytes_freed=self._bytes_freed,
        )

    # --- which releases ---

    def _choose(self, models: Sequence[str]) -> list[Candidates]:
        rows = {row.model: row for row in self._store.state.models()}
        return choose(self._signed.releases(), models, rows=rows, lacking=self._store.state.shortfalls())

    def _acceptance(self) -> Acceptance:
        return Acceptance(
            self._store,
            self._signed,
            self._source,
            self._failover,
            client_version=self._client_version,
            client_id=self._store.state.client_id(),
            emit=self._emit,
            connections=self._connections,
        )

    def _take(self, acceptance: Acceptance, candidates: Candidates) -> AcceptedRelease | None:
        """The newest release that is meant for this machine; None if that is none, and what is installed stays."""
        installed = self._store.state.releases(candidates.model)
        newest = max((release.release for release in installed), default=0)
        for number, ref in enumerate(candidates.refs):
            if number and ref.release < newest:
                break  # never back to an older one because the newest is for others
            accepted = acceptance.accept(ref, installed, is_pinned=candidates.is_pinned)
            if accepted:
                return accepted
        if not installed and candidates.refs:
            raise NotInstalled(
                f"model {candidates.model!r} is being rolled out, and not yet to this machine",
                advice="try again later: the publisher widens the roll-out step by step",
            )
        return None

    # --- one model ---

    def _pull(self, acceptance: Acceptance, candidates: Candidates) -> ModelResult:
        before, accepted = self._source.requests, None
        try:
            try:
                accepted = self._take(acceptance, candidates)
            finally:
                self._requests_metadata += self._source.requests - before
            if accepted is None:
                return self._keep(candidates)
            result = self._install(acceptance, accepted)
            newest = candidates.refs[0]
            is_later = result.state == "current" and newest.release > accepted.ref.release
            return replace(result, reason=_is_for_others(newest)) if is_later else result
        except KenshoError as error:
            return self._give_up(candidates.model, accepted, error)

    def _keep(self, candidates: Candidates) -> ModelResult:
        """What is installed stays, and that is right."""
        if not candidates.is_withdrawn:
            reason = _is_for_others(candidates.refs[0])
            return ModelResult(candidates.model, self._current(candidates.model), "current", reason=reason)
        if not self._current(candidates.model):
            self._store.state.end_shortfall(candidates.model)  # nobody offers any more what was wanted
        return ModelResult(
            candidates.model, self._current(candidates.model), "current", reason="it is not published here any more"
        )

    def _give_up(self, model: str, accepted: AcceptedRelease | None, error: KenshoError) -> ModelResult:
        """The model could not be brought (row D8). An optional one that the sources or the disk do not have room for is
        degraded; any other failure may pass, or needs a person."""
        current = self._current(model)
        if accepted is None or isinstance(error, TrustError):
            return ModelResult(model, current, "failed", error, error.message)
        if not current:
            with suppress(StorageError):  # a disk that is full refuses this too; why the pull failed matters more
                self._store.state.put_shortfall(self._shortfall(accepted, error.message, _end_of(error)))
            instead = accepted.manifest.fallback_model or "nothing"
            self._emit(
                ModelUnavailable(model=model, version=accepted.ref.version, reason=error.message, fallback=instead)
            )
        is_optional = not accepted.manifest.is_required
        if is_optional and isinstance(error, NotFoundAtSource | DigestMismatch | NotEnoughSpace):
            return ModelResult(model, current, "degraded", reason=error.message)
        return ModelResult(model, current, "failed", error, error.message)

    def _current(self, model: str) -> str:
        return next((row.current for row in self._store.state.models() if row.model == model), "")

    def _shortfall(self, accepted: AcceptedRelease, reason: str, ends: str) -> Shortfall:
        """Since when it was first so, however often it was tried again."""
        ref, earlier = accepted.ref, self._store.state.shortfalls().get(accepted.ref.model)
        since = earlier.since if earlier and earlier.version == ref.version else self._clock.wall_s()
        return Shortfall(ref.model, ref.version, since, reason, ends, accepted.manifest.fallback_model)

    def _collect(self, *, also_keep: Collection[tuple[str, str]] = (), fetching: Collection[Digest] = ()) -> bool:
        """What nothing needs any more; whether that freed anything. That it fails is no failure of the pull: the next
        one, or `gc`, does it."""
        freed = 0
        with suppress(StorageError):
            freed = collect(self._store, clock=self._clock, also_keep=also_keep, fetching=fetching)
        self._bytes_freed += freed
        return freed > 0

    def _bring(self, accepted: AcceptedRelease) -> Brought:
        """Every file, as far as it can be had. Where space is short, versions that nothing needs go first."""

        def attempt() -> Brought:
            ref = accepted.ref
            transfer = Transfer(
                self._store, self._source, self._failover, emit=self._emit, connections=self._connections
            )
            return bring(
                self._store, ref.model, ref.version, accepted.want, transfer, clock=self._clock, emit=self._emit
            )

        try:
            return attempt()
        except NotEnoughSpace:
            if not self._collect(fetching={file.digest for file in accepted.want.values()}):
                raise
        return attempt()

    def _install(self, acceptance: Acceptance, accepted: AcceptedRelease) -> ModelResult:
        ref, fetched_before = accepted.ref, self._source.bytes_fetched
        brought = self._bring(accepted)
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
        vouching = [*self._store.state.records().values(), *records]  # the later ones count
        vouched = self._store.versions.publish(release.model, release.version, names, vouching, now=now)
        row = next((row for row in self._store.state.models() if row.model == release.model), None)
        known = [r for r in self._store.state.releases(release.model) if r.version == release.version]
        # Every byte of this version was hashed now or is vouched for: that is a check of grade "load".
        if row and row.current == release.version and known and known[0].files == release.files:
            if known[0].manifest != release.manifest:  # rolled out further: its terms are others, its files are not
                self._store.state.resign(release.model, release.version, release.manifest)
            self._store.state.finish_check("load", good=vouched, bad=(), damaged=0, now=now)
            return False
        lacking = [f"{file.path}: {file.reason}" for file in release.files if file.used != file.digest]
        ends = "the next pull that finds what is missing at the source"
        shortfall = self._shortfall(accepted, "; ".join(lacking), ends) if lacking else None
        self._store.state.install(release, vouched, now=now, shortfall=shortfall)
        self._store.state.finish_check("load", good=(), bad=(), damaged=0, now=now)
        by_digest = {file.digest: file.path for file in release.files}
        for file in release.files:
            if file.used != file.digest:
                fallback = by_digest[file.used] if file.used else "nothing (it is optional)"
                self._emit(
                    FallbackActivated(model=release.model, path=file.path, fallback=fallback, reason=file.reason or "")
                )
        return True


def _is_for_others(ref: ReleaseRef) -> str:
    return f"{ref.version} is rolled out to other machines first"


def _end_of(error: KenshoError) -> str:
    """What would end the shortfall that this error made, in words."""
    if isinstance(error, NotEnoughSpace):
        return f"more space, then `kensho pull` ({error.advice})"
    return "the next `kensho pull` that can have it from the source"
