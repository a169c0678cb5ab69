"""From a signed release to what is wanted of it: its manifest and chunk lists, accepted or refused.

Documents are taken from memory, then from the store, then from the source; whichever, they are the signed bytes. They
are kept in memory until `keep` writes them into the store, so that a plan can be shown without changing anything.
"""

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Protocol

from kensho.base.errors import Damaged, DigestMismatch, KenshoError, TrustError
from kensho.base.events import Emit, ManifestAccepted, ManifestRejected
from kensho.base.ids import Digest
from kensho.base.structs import Struct
from kensho.delivery.chunk_list import MAX_LIST_BYTES
from kensho.delivery.installed import Release
from kensho.delivery.layout import chunk_list_target
from kensho.delivery.manifest import FileEntry, Manifest, check_client_version, parse_chunk_list, parse_manifest
from kensho.delivery.parallel import for_each
from kensho.delivery.plan import WantedFile
from kensho.delivery.releases import ReleaseRef
from kensho.delivery.rollout import is_in_rollout
from kensho.delivery.sources import Failover, Source
from kensho.delivery.store import Store
from kensho.delivery.transfer import ATTEMPTS


class SignedReleases(Protocol):
    """What delivery needs of `trust.Trust` (importing it costs 0.3 s, so it is passed in)."""

    def refresh(self, source: Source) -> None: ...
    def releases(self, model: str | None = None) -> list[ReleaseRef]: ...
    def fetch_document(self, source: Source, target: str) -> bytes: ...


class AcceptedRelease(Struct):
    """A release that is signed, well-formed, meant for this client, and not older than what is installed."""

    ref: ReleaseRef
    manifest: Manifest
    want: Mapping[str, WantedFile]
    """By path."""


class Acceptance:
    """Accepts releases for one run of the updater."""

    def __init__(
        self,
        store: Store,
        signed: SignedReleases,
        source: Source,
        failover: Failover,
        *,
        client_version: str,
        client_id: str,
        emit: Emit,
        connections: int,
    ) -> None:
        self._store, self._signed, self._source, self._failover = store, signed, source, failover
        self._client_version, self._client_id = client_version, client_id
        self._emit, self._connections = emit, connections
        self._documents: dict[Digest, bytes] = {}
        self._lock = Lock()

    def accept(self, ref: ReleaseRef, installed: Sequence[Release], *, is_pinned: bool) -> AcceptedRelease | None:
        """The release; None if it is rolled out to other machines first (one that is pinned or installed is taken).

        Raises TrustError or ClientTooOld (what is installed keeps working), TransportError, Damaged.
        """
        is_new = all(release.manifest != ref.digest for release in installed)
        is_here = any(release.version == ref.version for release in installed)
        try:
            _check_order(ref, installed, is_pinned=is_pinned)
            manifest = parse_manifest(self._document(ref.digest, ref.target, ref.size_bytes))
            _check_release(ref, manifest, installed)
            is_ours = is_in_rollout(manifest.rollout_percent, manifest.rollout_salt, self._client_id)
            if not (is_pinned or is_here or is_ours):
                return None
            check_client_version(manifest, self._client_version)
            want = self._wanted(manifest)
        except TrustError as error:
            self._emit(ManifestRejected(model=ref.model, reason=error.message))
            raise
        if is_new:
            self._emit(ManifestAccepted(model=ref.model, version=ref.version, digest=ref.digest))
        return AcceptedRelease(ref, manifest, want)

    def keep(self, accepted: AcceptedRelease) -> None:
        """Its documents are in the store. The caller holds the store's lock."""
        for digest in (accepted.ref.digest, *(file.chunk_list for file in accepted.manifest.files)):
            if digest in self._documents:
                self._store.put_document(self._documents[digest])

    def _wanted(self, manifest: Manifest) -> dict[str, WantedFile]:
        lists: dict[Digest, bytes] = {}

        def fetch(file: FileEntry) -> None:
            target = chunk_list_target(manifest.model, file.chunk_list)
            lists[file.chunk_list] = self._document(file.chunk_list, target, MAX_LIST_BYTES)

        distinct = {file.chunk_list: file for file in manifest.files}
        for_each(distinct.values(), fetch, threads=self._connections)
        return {
            file.path: WantedFile(file.digest, file.size_bytes, parse_chunk_list(lists[file.chunk_list], file).chunks)
            for file in manifest.files
        }

    def _document(self, digest: Digest, target: str, max_bytes: int) -> bytes:
        if digest in self._documents:
            return self._documents[digest]
        try:
            return self._store.document(digest, max_bytes=max_bytes)
        except Damaged:
            pass  # not there, or not right: fetched, and written anew by `keep`
        data = self._fetch(target)
        with self._lock:
            self._documents[digest] = data
        return data

    def _fetch(self, target: str) -> bytes:
        attempt = 1
        while True:
            try:
                return self._signed.fetch_document(self._source, target)
            except DigestMismatch:
                self._failover.blame()
                if attempt == ATTEMPTS:
                    raise
                attempt += 1


def _check_order(ref: ReleaseRef, installed: Sequence[Release], *, is_pinned: bool) -> None:
    newest = max((release.release for release in installed), default=0)
    if ref.release < newest and not is_pinned:
        raise TrustError(
            f"{ref.model} {ref.version} is release {ref.release}, and release {newest} is installed already",
            advice="the publisher must publish what is to be used as a new release; to go back here: `kensho rollback`",
        )


def _check_release(ref: ReleaseRef, manifest: Manifest, installed: Sequence[Release]) -> None:
    if (manifest.model, manifest.version, manifest.release) != (ref.model, ref.version, ref.release):
        raise TrustError(
            f"the manifest signed as {ref.model} {ref.version} says {manifest.model} {manifest.version}",
            advice="tell its publisher; what is installed keeps working",
        )
    for release in installed:
        # One folder per version: other bytes under the same name would change files under a running engine.
        before = {file.path: file.digest for file in release.files}
        if release.version == ref.version and before != {file.path: file.digest for file in manifest.files}:
            raise TrustError(
                f"{ref.model} {ref.version} was published twice with different files",
                advice="the publisher must use a new version; what is installed keeps working",
            )


def decide_files(
    accepted: AcceptedRelease, failed: Mapping[Digest, KenshoError]
) -> dict[str, tuple[Digest | None, str | None]]:
    """For each path: the digest that stands there, and why it is not the file's own (row D8). Pure.

    Raises the file's error if it is required and no fallback of it could be had.
    """
    files = {file.path: file for file in accepted.manifest.files}
    decided: dict[str, tuple[Digest | None, str | None]] = {}
    for path, file in files.items():
        error = failed.get(file.digest)
        if error is None:
            decided[path] = (file.digest, None)
            continue
        other: FileEntry | None = file
        while other is not None and other.digest in failed:
            other = files[other.fallback] if other.fallback else None
        if other is None and file.is_required:
            raise error
        decided[path] = (other.digest if other else None, error.message)
    return decided
