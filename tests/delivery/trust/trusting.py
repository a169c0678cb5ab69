"""A publisher in memory whose every word can be forged, and a client that trusts it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from kensho.base.errors import TrustError
from kensho.base.events import Event, ManifestRejected
from kensho.base.ids import digest_of
from kensho.delivery.trust import Trust
from kensho.testing.repository import MemorySource

DAY0 = datetime(2026, 11, 20, tzinfo=UTC)
ROLES = ("root", "timestamp", "snapshot", "targets")
DOCUMENT = b'{"a manifest": 1}'


def day(number: float) -> datetime:
    return DAY0 + timedelta(days=number)


class Publisher:
    """A repository in memory whose keys we have, so that it can lie with a good signature."""

    def __init__(self) -> None:
        self.source = MemorySource({})
        self.signers = {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.root = Root(expires=day(365), consistent_snapshot=True)
        for role in ROLES:
            self.root.add_key(self.signers[role][0].public_key, role)
        self.targets = Targets(expires=day(90))
        self.snapshot = Snapshot(expires=day(90))
        self.timestamp = Timestamp(expires=day(30))
        self.add_document("voice/1.0/manifest.json", DOCUMENT, {"model": "voice", "version": "1.0", "release": 1})
        self.publish_root()
        self.publish()

    def add_document(self, target: str, data: bytes, custom: object = None) -> None:
        described = TargetFile.from_data(target, data, ["sha256"])
        if custom is not None:
            described.unrecognized_fields["custom"] = custom
        self.targets.targets[target] = described
        folder, _, name = target.rpartition("/")
        self.source.files[f"targets/{folder}/{digest_of(data)}.{name}"] = data

    def signed(self, payload: Root | Timestamp | Snapshot | Targets) -> bytes:
        metadata = Metadata(payload)
        for signer in self.signers[payload.type]:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def put(self, payload: Root | Timestamp | Snapshot | Targets) -> bytes:
        data = self.signed(payload)
        name = "timestamp" if isinstance(payload, Timestamp) else f"{payload.version}.{payload.type}"
        self.source.files[f"metadata/{name}.json"] = data
        return data

    def publish_root(self) -> None:
        self.put(self.root)

    def publish(self, *, step: int = 0) -> None:
        """Sign all three anew, each `step` versions later, each naming the one below."""
        for payload in (self.targets, self.snapshot, self.timestamp):
            payload.version += step
        self.snapshot.meta["targets.json"] = MetaFile.from_data(
            self.targets.version, self.put(self.targets), ["sha256"]
        )
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, self.put(self.snapshot), ["sha256"])
        self.put(self.timestamp)

    def replace_key(self, role: str) -> None:
        """A new root, signed by the old and the new root key, in which `role` has another key."""
        old = self.signers[role]
        self.signers[role] = [CryptoSigner.generate_ed25519()]
        self.root.revoke_key(old[0].public_key.keyid, role)
        self.root.add_key(self.signers[role][0].public_key, role)
        self.root.version += 1
        if role == "root":
            self.signers["root"] += old
        self.publish_root()
        self.signers[role] = self.signers[role][:1]


class Client:
    """A trusted folder, its clock, and what it reported."""

    def __init__(self, folder: Path, root: bytes) -> None:
        self.folder = folder
        self.now = DAY0
        self.events: list[Event] = []
        Trust.initialise(folder, root)
        self.trust = Trust(folder, now=lambda: self.now, emit=self.events.append)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if path.suffix in (".json", ".record")}


def refused(client: Client, publisher: Publisher, role: str, reason: str) -> TrustError:
    """The refresh is refused for this reason, and nothing of it reaches the folder."""
    before = client.files()
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, reason)
    assert caught.value.advice
    assert isinstance(client.events[-1], ManifestRejected)
    assert client.files() == before
    return caught.value
