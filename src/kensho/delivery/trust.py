"""The client's end of The Update Framework: which releases there are, and that the publisher says so now.

Every check is python-tuf's (`TrustedMetadataSet`); reading, writing and time are ours (ADR 0002), because the
reference client replaces files without fsync or lock and reads the machine's clock. What each check gives:

- root: a chain, each version signed by the one before and by itself: keys can be replaced, one lost key is no end;
- threshold of signatures by distinct keys of the root: nobody else can sign;
- versions that never go back (root, timestamp, snapshot, and each entry of the snapshot): no rollback;
- expiry, against a clock that never goes back below the latest successful refresh: no freeze beyond the timestamp's
  validity. Only a refresh that was not expired raises that floor, so a clock set forward by mistake cannot lock it;
- length and hash of the snapshot in the timestamp, of the targets in the snapshot: no mix-and-match;
- a limit of bytes on every read, and of 256 new roots in one refresh: no endless data.

Each file is written to the trusted folder after it passed all its checks and never before, in the order in which the
specification says to persist (section 5.3 to 5.6 of the TUF specification): a new root counts even if the
timestamp is then refused. Refused metadata never reaches the folder. Delegated targets are not followed: Kensho's
repositories have none.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Targets
from tuf.api.serialization import DeserializationError
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from kensho.base.errors import ConfigError, DigestMismatch, NotFoundAtSource, TrustError
from kensho.base.events import Emit, ManifestRejected, RootTrusted
from kensho.base.ids import Digest, digest_of, parse_digest
from kensho.delivery.chunk_list import MAX_LIST_BYTES
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.layout import TIMESTAMP, chunk_list_target, metadata_path, target_path
from kensho.delivery.releases import ReleaseRef, read_release
from kensho.delivery.sources import Source
from kensho.delivery.trusted_folder import MAX_BYTES, TrustedFolder

__all__ = ["ReleaseRef", "Trust"]

MAX_NEW_ROOTS: Final = 256
"""In one refresh; the next one goes on. python-tuf's limit (ngclient/config.py)."""
MAX_VERSION: Final = 2**53
"""Guess: nobody publishes so often; it keeps file names short."""
_ADVICE = "what is installed keeps working; tell the publisher"
_EXPIRED_ADVICE = (
    "what is installed keeps working; the publisher must sign anew (`kensho resign`), "
    "unless this machine's clock is wrong"
)


class Trust:
    """One trusted folder. Methods block; not thread-safe, but `fetch_document` is, between refreshes."""

    def __init__(self, folder: Path, *, now: Callable[[], datetime], emit: Emit, disk: Disk | None = None) -> None:
        self._folder = TrustedFolder(folder, disk or RealDisk())
        self._now, self._emit = now, emit
        self._targets: dict[str, TargetFile] | None = None

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

    def fetch_document(self, source: Source, target: str) -> bytes:
        """A signed document (manifest, chunk list): exactly the signed bytes.

        TrustError if nothing of that name is signed; DigestMismatch if the source has other bytes (ask another);
        TransportError. Reads at most the signed length.
        """
        signed = self._accepted_targets().get(target)
        if signed is None:
            raise TrustError(f"the publisher has not signed {target!r}", advice=_ADVICE)
        digest = parse_digest(signed.hashes.get("sha256"))
        if signed.length > MAX_LIST_BYTES:
            raise TrustError(f"the signed document {target!r} has {signed.length} bytes: too many", advice=_ADVICE)
        data = source.read(target_path(target, digest), max_bytes=signed.length)
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
        self._targets = None
        root = self._update_root(trusted, source, root)
        self._update_timestamp(trusted, source, root)
        self._update_snapshot(trusted, source)
        self._update_targets(trusted, source)
        self._targets = trusted.targets.targets
        self._folder.raise_floor(trusted.reference_time)

    def _update_root(self, trusted: TrustedMetadataSet, source: Source, root: bytes) -> bytes:
        first = trusted.root.version + 1
        for version in range(first, first + MAX_NEW_ROOTS):
            try:
                data = source.read(metadata_path("root", version), max_bytes=MAX_BYTES["root"])
            except NotFoundAtSource:
                break
            with _refusing("root", source.name, data):
                trusted.update_root(data)
            self._folder.commit("root", data, root)
            self._emit(RootTrusted(root_version=version, url=source.name))
            root = data
        return root

    def _update_timestamp(self, trusted: TrustedMetadataSet, source: Source, root: bytes) -> None:
        if trusted.root.is_expired(trusted.reference_time):
            raise _refusal(ExpiredMetadataError(), "root", source.name, root)
        mine = self._folder.read("timestamp")
        # Mine may be expired: it still guards against rollback. It may be signed by a key that a new root has
        # revoked: then it guards no more, which is how a repository recovers from a stolen key (fast-forward).
        _accepts(trusted.update_timestamp, mine)
        data = source.read(TIMESTAMP, max_bytes=MAX_BYTES["timestamp"])
        try:
            with _refusing("timestamp", source.name, data):
                trusted.update_timestamp(data)
        except EqualVersionNumberError:
            # The same version: mine stays, unless it has expired since (freeze).
            if trusted.timestamp.is_expired(trusted.reference_time):
                raise _refusal(ExpiredMetadataError(), "timestamp", source.name, mine or data) from None
            return
        self._folder.commit("timestamp", data, mine)

    def _update_snapshot(self, trusted: TrustedMetadataSet, source: Source) -> None:
        mine = self._folder.read("snapshot")
        if _accepts(lambda data: trusted.update_snapshot(data, trusted=True), mine):
            return
        meta = trusted.timestamp.snapshot_meta
        data = _fetch(trusted, source, "snapshot", meta.version, meta.length)
        with _refusing("snapshot", source.name, data):
            trusted.update_snapshot(data)
        self._folder.commit("snapshot", data, mine)

    def _update_targets(self, trusted: TrustedMetadataSet, source: Source) -> None:
        mine = self._folder.read("targets")
        if _accepts(trusted.update_targets, mine):
            return
        meta = trusted.snapshot.meta.get("targets.json")
        if meta is None:
            raise TrustError(f"the snapshot metadata from {source.name} names no targets", advice=_ADVICE)
        data = _fetch(trusted, source, "targets", meta.version, meta.length)
        with _refusing("targets", source.name, data):
            trusted.update_targets(data)
        self._folder.commit("targets", data, mine)

    def _accepted_targets(self) -> dict[str, TargetFile]:
        """From memory after a refresh, else from the folder, its signature checked against the trusted root."""
        if self._targets is None:
            root, data = self._folder.read("root"), self._folder.read("targets")
            if root is None or data is None:
                return {}
            with _refusing("targets", "this store", data):
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
    with _refusing("root", what, data):
        if len(data) > MAX_BYTES["root"]:
            raise DeserializationError
        return TrustedMetadataSet(data, EnvelopeType.METADATA).root


def _fetch(trusted: TrustedMetadataSet, source: Source, role: str, version: int, length: int | None) -> bytes:
    """The file that other metadata names, by version and perhaps length."""
    if version > MAX_VERSION:
        raise TrustError(f"the {role} metadata from {source.name} has an absurd version", advice=_ADVICE)
    path = metadata_path(role, version) if trusted.root.consistent_snapshot else f"metadata/{role}.json"
    limit = MAX_BYTES[role]
    return source.read(path, max_bytes=limit if length is None else min(limit, length))


def _accepts(check: Callable[[bytes], object], mine: bytes | None) -> bool:
    """Whether what was accepted earlier still is the wanted one. If not, the source is asked; nothing is lost."""
    try:
        if mine is not None:
            check(mine)
    except RepositoryError:
        return False
    return mine is not None


@contextmanager
def _refusing(role: str, origin: str, data: bytes) -> Iterator[None]:
    """Translates python-tuf's refusals into TrustError."""
    try:
        yield
    except EqualVersionNumberError:
        raise
    except RepositoryError as error:
        raise _refusal(error, role, origin, data) from error


def _refusal(error: RepositoryError, role: str, origin: str, data: bytes) -> TrustError:
    what = f"the {role} metadata from {origin}"
    match error:
        case ExpiredMetadataError():
            expiry = Metadata.from_bytes(data).signed.expires
            message, reason = f"{what} expired on {expiry:%Y-%m-%d %H:%M} UTC", "expired"
        case UnsignedMetadataError():
            message, reason = f"{what} is not signed by the publisher's {role} keys", "signature"
        case BadVersionNumberError():
            message, reason = f"{what} has a version that does not follow ({error})", "rollback"
        case LengthOrHashMismatchError():
            message, reason = f"{what} is not the file that the publisher named ({error})", "mismatch"
        case DeserializationError():
            message, reason = f"{what} is not TUF metadata", "malformed"
        case _:
            message, reason = f"{what} is refused ({error})", "malformed"
    advice = _EXPIRED_ADVICE if reason == "expired" else _ADVICE
    return TrustError(message, advice=advice, role=role, reason=reason)
