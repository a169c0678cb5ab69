"""New TUF metadata for a repository, signed with the publisher's keys. Reads keys, writes nothing.

How long metadata is valid is the publisher's bargain: a client that is fed old but valid metadata (freeze attack)
notices only at its end, but a publisher who forgets to sign anew stops all updates (never what is installed). Root: a
year. Targets and snapshot: 90 days. Timestamp: 30 days, for a publisher without a nightly job; with one
(`kensho resign`), `--expires 7` is better. `expires_days` sets the last three.

Snapshot and targets are named with length and SHA-256, so that no two states of a repository can be mixed.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import CryptoSigner, Key
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from kensho.base.errors import ConfigError
from kensho.base.structs import Struct
from kensho.delivery.keys import ROLES, load_public_key, load_signer

HASHES = ["sha256"]
MAX_TARGETS_BYTES = 5_000_000
"""What TUF clients accept by default (python-tuf, ngclient/config.py): some 20 000 documents."""

Payload = TypeVar("Payload", Root, Timestamp, Snapshot, Targets)


class Validity(Struct):
    """Days from signing to expiry."""

    root: int
    targets: int
    snapshot: int
    timestamp: int


def validity_of(expires_days: int | None) -> Validity:
    """The defaults, or `expires_days` for all but the root. ConfigError if it is not 1 to 3650."""
    if expires_days is None:
        return Validity(root=365, targets=90, snapshot=90, timestamp=30)
    if not 1 <= expires_days <= 3650:
        raise ConfigError(f"metadata cannot expire after {expires_days} days", advice="choose 1 to 3650 days")
    return Validity(max(365, expires_days), expires_days, expires_days, expires_days)


class OnlineRoles(Struct):
    """The three roles that change with every publish, and the exact bytes that others name by digest."""

    targets: Metadata[Targets]
    targets_bytes: bytes
    snapshot: Metadata[Snapshot]
    snapshot_bytes: bytes
    timestamp: Metadata[Timestamp]

    def versions(self) -> dict[str, int]:
        return {
            "targets": self.targets.signed.version,
            "snapshot": self.snapshot.signed.version,
            "timestamp": self.timestamp.signed.version,
        }


class MetadataSigner:
    """Signs at one moment with the keys of one folder. ConfigError if a key is missing or is not the role's."""

    def __init__(
        self,
        keys: Path,
        now: datetime,
        validity: Validity,
        *,
        signers: Mapping[str, Sequence[CryptoSigner]] | None = None,
    ) -> None:
        """`signers` sign for their role in place of the folder's key: two of them while one replaces the other."""
        self._keys, self._signers = keys, signers or {}
        self._now = now.astimezone(UTC).replace(microsecond=0)
        self._validity = validity

    def first_root(self) -> Metadata[Root]:
        """Version 1, one key for each role, threshold 1."""
        root = Root(consistent_snapshot=True, expires=self._expiry("root"))
        for role in ROLES:
            root.add_key(load_public_key(self._keys, role), role)
        return self._sign(root, root)

    def next_root(self, root: Root) -> Metadata[Root]:
        """The same keys, one version up, a new expiry."""
        signed = Root.from_dict(root.to_dict())
        signed.version += 1
        signed.expires = self._expiry("root")
        return self._sign(signed, root)

    def rotated_root(self, root: Root, role: str, new: Key) -> Metadata[Root]:
        """One version up, with `new` in place of the role's only key. ConfigError if the role has more than one."""
        signed = Root.from_dict(root.to_dict())
        if len(signed.roles[role].keyids) != 1:
            raise ConfigError(
                f"the {role} role of this repository has {len(signed.roles[role].keyids)} keys; one can be replaced",
                advice="use the tools that it was made with",
            )
        signed.version += 1
        signed.expires = self._expiry("root")
        signed.revoke_key(signed.roles[role].keyids[0], role)
        signed.add_key(new, role)
        return self._sign(signed, root)

    def next_roles(self, root: Root, before: OnlineRoles | None, targets: dict[str, TargetFile]) -> OnlineRoles:
        """All three anew, with these targets. ConfigError if they are more than clients accept."""
        version = before.targets.signed.version + 1 if before else 1
        signed = self._sign(Targets(version, expires=self._expiry("targets"), targets=targets), root)
        data = signed.to_bytes()
        if len(data) > MAX_TARGETS_BYTES:
            raise ConfigError(
                f"the targets metadata would have {len(data)} bytes; clients accept {MAX_TARGETS_BYTES}",
                advice="publish into a new repository",
            )
        return self._tie(root, before, signed, data)

    def renewed_roles(self, root: Root, before: OnlineRoles, until: datetime) -> OnlineRoles:
        """A new timestamp, and anew what expires before `until`."""
        if before.targets.signed.expires < until:
            return self.signed_anew(root, before, Targets.type)
        return self.signed_anew(
            root, before, Snapshot.type if before.snapshot.signed.expires < until else Timestamp.type
        )

    def signed_anew(self, root: Root, before: OnlineRoles, lowest: str) -> OnlineRoles:
        """The role `lowest` and those above it, which name it, anew: targets, snapshot, timestamp."""
        if lowest == Targets.type:
            return self.next_roles(root, before, before.targets.signed.targets)
        if lowest == Snapshot.type:
            return self._tie(root, before, before.targets, before.targets_bytes)
        timestamp = self._stamp(root, before, before.snapshot, before.snapshot_bytes)
        return OnlineRoles(before.targets, before.targets_bytes, before.snapshot, before.snapshot_bytes, timestamp)

    def _tie(
        self, root: Root, before: OnlineRoles | None, targets: Metadata[Targets], targets_bytes: bytes
    ) -> OnlineRoles:
        version = before.snapshot.signed.version + 1 if before else 1
        meta = {"targets.json": MetaFile.from_data(targets.signed.version, targets_bytes, HASHES)}
        snapshot = self._sign(Snapshot(version, expires=self._expiry("snapshot"), meta=meta), root)
        data = snapshot.to_bytes()
        return OnlineRoles(targets, targets_bytes, snapshot, data, self._stamp(root, before, snapshot, data))

    def _stamp(
        self, root: Root, before: OnlineRoles | None, snapshot: Metadata[Snapshot], snapshot_bytes: bytes
    ) -> Metadata[Timestamp]:
        version = before.timestamp.signed.version + 1 if before else 1
        meta = MetaFile.from_data(snapshot.signed.version, snapshot_bytes, HASHES)
        return self._sign(Timestamp(version, expires=self._expiry("timestamp"), snapshot_meta=meta), root)

    def _sign(self, payload: Payload, root: Root) -> Metadata[Payload]:
        """Signed by the role's key; by both where there are two, so that those who trust either root accept it."""
        signers = self._signers.get(payload.type) or [load_signer(self._keys, payload.type)]
        if not any(signer.public_key.keyid in root.roles[payload.type].keyids for signer in signers):
            raise ConfigError(
                f"{self._keys / payload.type}.pem is not the {payload.type} key of this repository",
                advice="use the keys that the repository was made with",
            )
        metadata = Metadata(payload)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata

    def _expiry(self, role: str) -> datetime:
        days: int = getattr(self._validity, role)
        return self._now + timedelta(days=days)
