"""A repository of The Update Framework whose every key we have, so that it can lie with a good signature.

    repo = TufRepository(now)
    repo.delegate("targets", "A", paths=["*.md"])
    repo.add_target("A", "README.md", b"...")
    repo.publish("A", "targets", "snapshot", "timestamp")       # each one version up, and named by the one above
    repo.rotate("timestamp"); repo.publish("root")

`source` serves it from memory, with metadata by quoted name; `requests` lists what metadata was asked for. Anything in
`payloads` may be changed before it is published: nothing here checks it.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TypeVar, cast
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from kensho.delivery.layout import target_path
from kensho.testing.memory_source import MemorySource

TOP_LEVEL = ("root", "timestamp", "snapshot", "targets")
P = TypeVar("P", Root, Timestamp, Snapshot, Targets)
Payload = Root | Timestamp | Snapshot | Targets


class RecordingSource(MemorySource):
    """Remembers what was asked for, whether it was there or not."""

    def __init__(self) -> None:
        super().__init__({})
        self.paths: list[str] = []

    def read(self, path: str, *, max_bytes: int) -> bytes:
        self.paths.append(path)
        return super().read(path, max_bytes=max_bytes)


class TufRepository:
    """Version 1 of the four roles is published at once, valid for 30 days.

    `has_hashes`: the timestamp and the snapshot name what is below them with length and hash, not only by version.
    """

    def __init__(self, now: datetime, *, has_hashes: bool = True) -> None:
        self.expires = (now + timedelta(days=30)).replace(microsecond=0)
        self.has_hashes = has_hashes
        self.source = RecordingSource()
        self.signers: dict[str, list[CryptoSigner]] = {role: [new_key()] for role in TOP_LEVEL}
        root = Root(expires=self.expires, consistent_snapshot=True)
        for role in TOP_LEVEL:
            root.add_key(self.signers[role][0].public_key, role)
        self.payloads: dict[str, Payload] = {
            "root": root,
            "targets": Targets(expires=self.expires),
            "snapshot": Snapshot(expires=self.expires),
            "timestamp": Timestamp(expires=self.expires),
        }
        self._published: set[str] = set()
        self.publish("root", "targets", "snapshot", "timestamp")

    @property
    def root(self) -> Root:
        return self._payload(Root, "root")

    @property
    def timestamp(self) -> Timestamp:
        return self._payload(Timestamp, "timestamp")

    @property
    def snapshot(self) -> Snapshot:
        return self._payload(Snapshot, "snapshot")

    def targets(self, role: str = "targets") -> Targets:
        return self._payload(Targets, role)

    @property
    def requests(self) -> list[str]:
        """Names of the metadata files that were asked for, as in an address."""
        return [path.removeprefix("metadata/") for path in self.source.paths if path.startswith("metadata/")]

    def publish(self, *roles: str) -> None:
        """Sign each role anew, one version up (unless it is its first one), and name it in the role above, unsigned."""
        for role in roles:
            payload = self.payloads[role]
            if role in self._published:
                payload.version += 1
            self._published.add(role)
            self.put(role)

    def put(self, role: str) -> bytes:
        """Sign the role as it is and serve it."""
        payload = self.payloads[role]
        data = self.signed(role)
        name = "timestamp" if role == "timestamp" else f"{payload.version}.{quote(role, safe='')}"
        self.source.files[f"metadata/{name}.json"] = data
        named = MetaFile.from_data(payload.version, data, ["sha256"]) if self.has_hashes else MetaFile(payload.version)
        if isinstance(payload, Targets):
            self.snapshot.meta[f"{role}.json"] = named
        elif isinstance(payload, Snapshot):
            self.timestamp.snapshot_meta = named
        return data

    def signed(self, role: str) -> bytes:
        metadata: Metadata[Root] = Metadata(cast("Root", self.payloads[role]))  # or any of the others
        for signer in self.signers[role]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def add_target(self, role: str, path: str, data: bytes) -> None:
        target = TargetFile.from_data(path, data, ["sha256"])
        self.targets(role).targets[path] = target
        self.source.files[target_path(path, target.hashes["sha256"])] = data

    def delegate(
        self,
        delegator: str,
        role: str,
        *,
        paths: Sequence[str] = ("*",),
        is_terminating: bool = False,
        key: CryptoSigner | None = None,
    ) -> None:
        """`delegator` lets `role` sign these paths with a key: a new one, by which the role is signed from now on."""
        targets = self.targets(delegator)
        targets.delegations = targets.delegations or Delegations({}, {})
        assert targets.delegations.roles is not None  # noqa: S101 - as made here
        targets.delegations.roles[role] = DelegatedRole(role, [], 1, is_terminating, list(paths))
        if key is None:
            key = new_key()
            self.signers.setdefault(role, []).append(key)
        targets.add_key(key.public_key, role)
        self.payloads.setdefault(role, Targets(expires=self.expires))

    def rotate(self, role: str) -> None:
        """Another key for a top-level role. A root that is published next is signed by its old and its new key."""
        old, new = self.signers[role], new_key()
        for signer in old:
            self.root.revoke_key(signer.public_key.keyid, role)
        self.root.add_key(new.public_key, role)
        self.signers[role] = [new, *old] if role == "root" else [new]

    def _payload(self, kind: type[P], role: str) -> P:
        return cast("P", self.payloads[role])


def new_key() -> CryptoSigner:
    return CryptoSigner.generate_ed25519()
