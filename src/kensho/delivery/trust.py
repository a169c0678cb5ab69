"""The client's end of The Update Framework: which releases there are, and that the publisher says so now.

Every check is python-tuf's (`TrustedMetadataSet`); reading, writing and time are ours (ADR 0002), because the
reference client replaces files without fsync or lock and reads the machine's clock. What each check gives:

- root: a chain, each version signed by the one before and by itself: keys can be replaced, one lost key is no end;
- threshold of signatures by distinct keys of the root: nobody else can sign;
- versions that never go back (root, timestamp, snapshot, and each entry of the snapshot): no rollback;
- expiry, against a clock that never goes back below the latest successful refresh: no freeze beyond the timestamp's
  validity. Only a refresh that was not expired raises that floor, so a clock set forward by mistake cannot lock it;
- length and hash of the snapshot in the timestamp, of the targets in the snapshot: no mix-and-match;
- a limit of bytes on every read, of 256 new roots in one refresh, of 32 delegated roles in one search: no endless data.

Each file is written to the trusted folder after it passed all its checks and never before, in the order in which the
specification says to persist (section 5.3 to 5.6 of the TUF specification): a new root counts even if the
timestamp is then refused. Refused metadata never reaches the folder.

A target that the top-level targets do not name is looked for in delegated roles (`delegations`), each verified against
the role that delegates to it in this very search, also if it comes from the folder. Releases are never delegated.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Final, cast

from tuf.api.exceptions import EqualVersionNumberError, ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from kensho.base.errors import ConfigError, DigestMismatch, NotFoundAtSource, TrustError
from kensho.base.events import Emit, ManifestRejected, RootTrusted
from kensho.base.ids import Digest, digest_of, parse_digest
from kensho.delivery.chunk_list import MAX_LIST_BYTES
from kensho.delivery.delegations import find_target
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.layout import TIMESTAMP, chunk_list_target, metadata_path, target_path
from kensho.delivery.metadata_checks import (
    ADVICE,
    check_distinct_keys,
    check_strict_json,
    file_name,
    refusal,
    refusing,
)
from kensho.delivery.releases import ReleaseRef, read_release
from kensho.delivery.sources import Source
from kensho.delivery.trusted_folder import MAX_BYTES, Refreshed, TrustedFolder

__all__ = ["ReleaseRef", "Trust"]

MAX_NEW_ROOTS: Final = 256
"""In one refresh; the next one goes on. python-tuf's limit (ngclient/config.py)."""
MAX_VERSION: Final = 2**53
"""Guess: nobody publishes so often; it keeps file names short."""
MAX_SEARCH_BYTES: Final = 20_000_000
"""Of delegated roles in one search: four times the limit of one. A guess that bounds memory at some 500 MB."""
_TOP_LEVEL: Final = ("root", "timestamp", "snapshot", "targets")


class Trust:
    """One trusted folder. Methods block; not thread-safe, but `fetch_document` is, between refreshes."""

    def __init__(self, folder: Path, *, now: Callable[[], datetime], emit: Emit, disk: Disk | None = None) -> None:
        self._folder = TrustedFolder(folder, disk or RealDisk())
        self._now, self._emit = now, emit
        self._targets: dict[str, TargetFile] | None = None
        self._trusted: TrustedMetadataSet | None = None
        self._searching = Lock()

    @staticmethod
    def check_root(root: bytes) -> int:
        """The version of a root file that `initialise` would trust. TrustError if it is not one signed by itself."""
        return _open_root(root, "the root file").version

    @staticmethod
    def initialise(folder: Path, root: bytes, disk: Disk | None = None) -> int:
        """Trust this root from now on; returns its version, or the version that it has led to by now.

        Doing it again with the same root changes nothing. TrustError if it is not a root signed by itself,
        ConfigError if another root is trusted already, StorageError if the folder cannot be written.
        """
        _open_root(root, "the root file")
        current = TrustedFolder(folder, disk or RealDisk()).begin(root, _is_root)
        return _open_root(current, "this store").version

    def refresh(self, source: Source) -> None:
        """Bring the trusted metadata up to date. Raises, with everything accepted so far kept:

        TrustError (`role` and `reason`: expired, signature, rollback, mismatch, malformed) - never retried;
        TransportError - the source could not deliver; ConfigError - no root is trusted yet;
        StoreBusy - another process accepted something else meanwhile, run it again; StorageError.
        If nothing changed it costs 2 requests: the next root, which is not there, and the timestamp.
        """
        try:
            self._refresh(source)
        except TrustError as error:
            self._emit(ManifestRejected(model="", reason=error.message))
            raise

    def releases(self, model: str | None = None) -> list[ReleaseRef]:
        """Releases in the targets metadata last accepted, by model, newest first. No network; expiry is not looked at.

        Empty before the first refresh. TrustError if what is in the folder is not signed by the trusted root.
        """
        found = [
            read_release(name, target.length, target.hashes.get("sha256"), target.custom)
            for name, target in self._accepted_targets().items()
        ]
        chosen = [ref for ref in found if ref is not None and model in (None, ref.model)]
        return sorted(chosen, key=lambda ref: (ref.model, -ref.release))

    def find_target(self, source: Source, target: str) -> TargetFile:
        """Length and hashes of a target, signed. TrustError if no role that may sign it does.

        Delegated roles are searched only after a refresh by this object: it is what says that they are current.
        They are read from the folder or else from the source, and kept in the folder once they are verified.
        """
        found = self._accepted_targets().get(target)
        if found is None and (trusted := self._trusted) is not None:
            with self._searching:
                left = MAX_SEARCH_BYTES

                def load(role: str, delegator: str) -> Targets:
                    nonlocal left
                    targets, size = self._load_delegated(trusted, source, role, delegator)
                    left -= size
                    if left < 0:
                        raise TrustError(
                            f"the delegated roles that may sign {target[:200]!r} are too large", advice=ADVICE
                        )
                    return targets

                found = find_target(target, trusted.targets, load)
        if found is None:
            raise TrustError(f"the publisher has not signed {target[:200]!r}", advice=ADVICE)
        return found

    def location(self, target: TargetFile) -> str:
        """Path of a target's file, relative to the repository: its digest is part of the name, unless the root says
        that this repository does not do that (no consistent snapshots)."""
        if self._trusted is None or self._trusted.root.consistent_snapshot:
            return target_path(target.path, target.hashes.get("sha256") or next(iter(target.hashes.values())))
        return f"targets/{target.path}"

    def fetch_document(self, source: Source, target: str) -> bytes:
        """A signed document (manifest, chunk list): exactly the signed bytes.

        TrustError if nothing of that name is signed; DigestMismatch if the source has other bytes (ask another);
        TransportError. Reads at most the signed length.
        """
        signed = self.find_target(source, target)
        digest = parse_digest(signed.hashes.get("sha256"))
        if signed.length > MAX_LIST_BYTES:
            raise TrustError(f"the signed document {target!r} has {signed.length} bytes: too many", advice=ADVICE)
        data = source.read(self.location(signed), max_bytes=signed.length)
        if len(data) != signed.length or digest_of(data) != digest:
            raise DigestMismatch(
                f"{source.name} delivered other bytes than the signed ones for {target!r}",
                advice="another source is asked, or try again later",
                digest=digest,
            )
        return data

    @staticmethod
    def chunk_list_target(ref: ReleaseRef, chunk_list: Digest) -> str:
        """The target of a chunk list that the manifest of `ref` names."""
        return chunk_list_target(ref.model, chunk_list)

    def _refresh(self, source: Source) -> None:
        root = self._folder.read("root")
        if root is None:
            raise ConfigError(f"no root is trusted in {self._folder.path}", advice="run `kensho init` first")
        if not _is_root(root):
            raise TrustError(
                f"the trusted root in {self._folder.path} is damaged",
                advice="run `kensho init` again with the publisher's root file",
            )
        trusted = TrustedMetadataSet(root, EnvelopeType.METADATA)
        trusted.reference_time = max(self._now(), self._folder.latest_seen())
        self._targets = self._trusted = None
        root = self._update_root(trusted, source, root)
        self._update_timestamp(trusted, source, root)
        self._update_snapshot(trusted, source)
        self._update_targets(trusted, source)
        self._targets, self._trusted = trusted.targets.targets, trusted
        expires, role = min((trusted[name].expires, name) for name in _TOP_LEVEL)
        self._folder.note_refresh(Refreshed(at=trusted.reference_time, role=role, expires=expires))

    def _update_root(self, trusted: TrustedMetadataSet, source: Source, root: bytes) -> bytes:
        first = trusted.root.version + 1
        for version in range(first, first + MAX_NEW_ROOTS):
            try:
                data = source.read(metadata_path("root", version), max_bytes=MAX_BYTES["root"])
            except NotFoundAtSource:
                break
            check_strict_json(data, "root", source.name)
            with refusing("root", source.name, data):
                check_distinct_keys(data, "root", trusted.root)
                trusted.update_root(data)
                check_distinct_keys(data, "root", trusted.root)
            self._folder.commit("root", data, root)
            self._emit(RootTrusted(root_version=version, url=source.name))
            root = data
        return root

    def _update_timestamp(self, trusted: TrustedMetadataSet, source: Source, root: bytes) -> None:
        if trusted.root.is_expired(trusted.reference_time):
            raise refusal(ExpiredMetadataError(), "root", source.name, root)
        mine = self._folder.read("timestamp")
        # Mine may be expired: it still guards against rollback. It may be signed by a key that a new root has
        # revoked: then it guards no more, which is how a repository recovers from a stolen key (fast-forward).
        _accepts(lambda data: _update(trusted.update_timestamp, data, "timestamp", trusted.root), mine)
        data = source.read(TIMESTAMP, max_bytes=MAX_BYTES["timestamp"])
        try:
            check_strict_json(data, "timestamp", source.name)
            with refusing("timestamp", source.name, data):
                _update(trusted.update_timestamp, data, "timestamp", trusted.root)
        except EqualVersionNumberError:
            # The same version: mine stays, unless it has expired since (freeze).
            if trusted.timestamp.is_expired(trusted.reference_time):
                raise refusal(ExpiredMetadataError(), "timestamp", source.name, mine or data) from None
            return
        self._folder.commit("timestamp", data, mine)

    def _update_snapshot(self, trusted: TrustedMetadataSet, source: Source) -> None:
        mine = self._folder.read("snapshot")

        def accept(data: bytes) -> None:
            check_distinct_keys(data, "snapshot", trusted.root)
            trusted.update_snapshot(data, trusted=True)

        if _accepts(accept, mine):
            return
        meta = trusted.timestamp.snapshot_meta
        data = _fetch(trusted, source, "snapshot", meta.version, meta.length)
        check_strict_json(data, "snapshot", source.name)
        with refusing("snapshot", source.name, data):
            _update(trusted.update_snapshot, data, "snapshot", trusted.root)
        self._folder.commit("snapshot", data, mine)

    def _update_targets(self, trusted: TrustedMetadataSet, source: Source) -> None:
        mine = self._folder.read("targets")
        if _accepts(lambda data: _update(trusted.update_targets, data, "targets", trusted.root), mine):
            return
        meta = trusted.snapshot.meta.get("targets.json")
        if meta is None:
            raise TrustError(f"the snapshot metadata from {source.name} names no targets", advice=ADVICE)
        data = _fetch(trusted, source, "targets", meta.version, meta.length)
        check_strict_json(data, "targets", source.name)
        with refusing("targets", source.name, data):
            _update(trusted.update_targets, data, "targets", trusted.root)
        self._folder.commit("targets", data, mine)

    def _load_delegated(
        self, trusted: TrustedMetadataSet, source: Source, role: str, delegator: str
    ) -> tuple[Targets, int]:
        """The role, verified against this delegator and the snapshot whichever way it came; and its size."""
        name, keys = file_name(role), cast("Targets", trusted[delegator])

        def update(data: bytes) -> None:
            check_distinct_keys(data, role, keys)
            trusted.update_delegated_targets(data, role, delegator)

        mine = self._folder.read(name)
        if mine is not None and _accepts(update, mine):
            return cast("Targets", trusted[role]), len(mine)
        meta = trusted.snapshot.meta.get(f"{role}.json")
        if meta is None:
            raise TrustError(f"the snapshot metadata from {source.name} does not name {role[:80]!r}", advice=ADVICE)
        data = _fetch(trusted, source, name, meta.version, meta.length)
        check_strict_json(data, role, source.name)
        with refusing(role, source.name, data):
            update(data)
        self._folder.commit(name, data, mine)
        return cast("Targets", trusted[role]), len(data)

    def _accepted_targets(self) -> dict[str, TargetFile]:
        """From memory after a refresh, else from the folder, its signature checked against the trusted root."""
        if self._targets is None:
            root, data = self._folder.read("root"), self._folder.read("targets")
            if root is None or data is None:
                return {}
            with refusing("targets", "this store", data):
                check_distinct_keys(data, "targets", _open_root(root, "this store"))
                metadata = Metadata[Targets].from_bytes(data)
                _open_root(root, "this store").verify_delegate(Targets.type, metadata.signed_bytes, metadata.signatures)
            self._targets = metadata.signed.targets
        return self._targets


def _is_root(data: bytes) -> bool:
    try:
        _open_root(data, "this store")
    except TrustError:
        return False
    return True


def _open_root(data: bytes, what: str) -> Root:
    with refusing("root", what, data):
        if len(data) > MAX_BYTES["root"]:
            raise DeserializationError
        check_strict_json(data, "root", what)
        root = TrustedMetadataSet(data, EnvelopeType.METADATA).root
        check_distinct_keys(data, "root", root)
        return root


def _update(check: Callable[[bytes], object], data: bytes, role: str, delegator: Root) -> None:
    """python-tuf's checks and ours. Ours come first: what it accepts, it keeps."""
    check_distinct_keys(data, role, delegator)
    check(data)


def _fetch(trusted: TrustedMetadataSet, source: Source, role: str, version: int, length: int | None) -> bytes:
    """The file that other metadata names, by version and perhaps length."""
    if version > MAX_VERSION:
        raise TrustError(f"the {role} metadata from {source.name} has an absurd version", advice=ADVICE)
    path = metadata_path(role, version) if trusted.root.consistent_snapshot else f"metadata/{role}.json"
    limit = MAX_BYTES.get(role, MAX_BYTES["targets"])
    return source.read(path, max_bytes=limit if length is None else min(limit, length))


def _accepts(check: Callable[[bytes], object], mine: bytes | None) -> bool:
    """Whether what was accepted earlier still is the wanted one. If not, the source is asked; nothing is lost."""
    try:
        if mine is not None:
            check(mine)
    except (RepositoryError, RecursionError, ValueError):
        return False
    return mine is not None
