"""kensho.delivery.trust: each attack of the TUF specification is refused, and refused bytes never reach the folder."""

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from kensho.base.errors import ConfigError, DigestMismatch, StoreBusy, TransportError, TrustError
from kensho.base.events import Event, ManifestRejected, RootTrusted
from kensho.base.ids import digest_of
from kensho.delivery.trust import MAX_NEW_ROOTS, ReleaseRef, Trust
from kensho.testing.disk import FaultyDisk, Stopped
from kensho.testing.repository import MemorySource

pytestmark = pytest.mark.store

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


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
def client(publisher: Publisher, ram: Path) -> Client:
    """A client that has refreshed once, on day 0."""
    found = Client(ram / "trusted", publisher.source.files["metadata/1.root.json"])
    found.trust.refresh(publisher.source)
    return found


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


# --- the good case ---


def test_a_refresh_brings_the_releases_and_their_documents(client: Client, publisher: Publisher) -> None:
    (ref,) = client.trust.releases("voice")
    assert ref == ReleaseRef("voice", "1.0", 1, "voice/1.0/manifest.json", digest_of(DOCUMENT), len(DOCUMENT))
    assert client.trust.fetch_document(publisher.source, ref.target) == DOCUMENT
    assert client.trust.releases("other") == []
    assert client.trust.chunk_list_target(ref, ref.digest) == f"voice/chunks/{ref.digest}.chunks"
    assert client.files()["targets.json"] == publisher.source.files["metadata/1.targets.json"]


def test_releases_are_known_without_network_in_a_new_process_and_after_expiry(client: Client) -> None:
    other = Trust(client.folder, now=lambda: day(4000), emit=client.events.append)
    assert [ref.version for ref in other.releases()] == ["1.0"]


def test_an_update_is_seen_and_newest_releases_come_first(client: Client, publisher: Publisher) -> None:
    publisher.add_document("voice/1.1/manifest.json", b"x", {"model": "voice", "version": "1.1", "release": 2})
    publisher.add_document("ear/7/manifest.json", b"y", {"model": "ear", "version": "7", "release": 9})
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    assert [(ref.model, ref.version) for ref in client.trust.releases()] == [
        ("ear", "7"),
        ("voice", "1.1"),
        ("voice", "1.0"),
    ]


def test_a_refresh_without_news_costs_two_requests_and_changes_only_the_clock(
    client: Client, publisher: Publisher
) -> None:
    before, requests = client.files(), publisher.source.requests
    client.now = day(1)
    client.trust.refresh(publisher.source)
    assert publisher.source.requests - requests == 2
    after = client.files()
    assert {name for name in after if after[name] != before.get(name)} == {"refresh.record"}


def test_a_store_without_root_asks_for_init(publisher: Publisher, ram: Path) -> None:
    trust = Trust(ram / "trusted", now=lambda: DAY0, emit=lambda event: None)
    assert trust.releases() == []
    with pytest.raises(ConfigError, match="no root"):
        trust.refresh(publisher.source)


def test_only_a_root_signed_by_itself_can_be_the_first(publisher: Publisher, ram: Path) -> None:
    good = publisher.source.files["metadata/1.root.json"]
    publisher.signers["root"] = [CryptoSigner.generate_ed25519()]
    for data in (
        publisher.signed(publisher.root),
        publisher.signed(publisher.targets),
        b"",
        b"[",
        good[:-9],
        b"[" * 9**6,
    ):
        with pytest.raises(TrustError):
            Trust.initialise(ram / "trusted", data)
        assert not (ram / "trusted").exists()
    assert Trust.initialise(ram / "trusted", good) == 1
    assert Trust.initialise(ram / "trusted", good) == 1


def test_a_damaged_trusted_root_says_how_to_mend_it(client: Client, publisher: Publisher) -> None:
    (client.folder / "root.json").chmod(0o600)
    (client.folder / "root.json").write_bytes(b"rot")
    with pytest.raises(TrustError, match="kensho init"):
        client.trust.refresh(publisher.source)
    assert Trust.initialise(client.folder, publisher.source.files["metadata/1.root.json"]) == 1
    client.trust.refresh(publisher.source)


# --- rollback ---


def test_an_older_timestamp_is_refused(client: Client, publisher: Publisher) -> None:
    old = publisher.source.files["metadata/timestamp.json"]
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    publisher.source.files["metadata/timestamp.json"] = old
    refused(client, publisher, "timestamp", "rollback")


def test_a_new_timestamp_with_an_older_snapshot_is_refused(client: Client, publisher: Publisher) -> None:
    publisher.publish(step=3)
    client.trust.refresh(publisher.source)
    publisher.snapshot.version = 2
    publisher.timestamp.version += 1
    publisher.publish()
    refused(client, publisher, "timestamp", "rollback")


def test_a_new_snapshot_with_older_targets_is_refused(client: Client, publisher: Publisher) -> None:
    publisher.publish(step=3)
    client.trust.refresh(publisher.source)
    publisher.targets.version = 1
    publisher.snapshot.version += 1
    publisher.timestamp.version += 1
    publisher.publish()
    before = client.files()
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == ("snapshot", "rollback")
    after = client.files()
    assert after.pop("timestamp.json") == publisher.source.files["metadata/timestamp.json"]  # it passed its own checks
    before.pop("timestamp.json")
    assert after == before


def test_targets_that_vanish_from_the_snapshot_are_refused(client: Client, publisher: Publisher) -> None:
    publisher.snapshot.meta["other.json"] = MetaFile(1)
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    del publisher.snapshot.meta["other.json"]
    publisher.publish(step=1)
    with pytest.raises(TrustError, match="missing info"):
        client.trust.refresh(publisher.source)
    assert client.files()["snapshot.json"] == publisher.source.files["metadata/2.snapshot.json"]


# --- freeze ---


def test_a_frozen_repository_is_refused_after_expiry_and_its_releases_stay_known(
    client: Client, publisher: Publisher
) -> None:
    client.now = day(31)
    error = refused(client, publisher, "timestamp", "expired")
    assert "2026-12-20" in error.message
    assert "resign" in error.advice
    assert client.trust.releases()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_new_metadata_that_has_expired_is_refused(role: str, client: Client, publisher: Publisher) -> None:
    getattr(publisher, role).expires = day(2)
    publisher.publish(step=1)
    client.now = day(3)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, "expired")
    assert client.files()[f"{role}.json"] == publisher.source.files[f"metadata/1.{role}.json"]


def test_an_expired_root_is_refused_but_a_newer_one_helps(client: Client, publisher: Publisher) -> None:
    publisher.timestamp.expires = publisher.snapshot.expires = publisher.targets.expires = day(900)
    publisher.publish(step=1)
    client.now = day(366)
    refused(client, publisher, "root", "expired")
    publisher.root.version, publisher.root.expires = 2, day(900)
    publisher.publish_root()
    client.trust.refresh(publisher.source)


def test_a_clock_set_back_does_not_thaw_old_metadata(client: Client, publisher: Publisher) -> None:
    client.now = day(29)
    client.trust.refresh(publisher.source)
    client.now = day(1)
    publisher.timestamp.expires = day(10)
    publisher.publish(step=1)
    refused(client, publisher, "timestamp", "expired")


def test_a_clock_set_forward_by_mistake_does_not_lock_the_store(client: Client, publisher: Publisher) -> None:
    client.now = day(30_000)
    refused(client, publisher, "root", "expired")
    client.now = day(1)
    client.trust.refresh(publisher.source)


# --- signatures ---


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_what_another_key_signed_is_refused(role: str, client: Client, publisher: Publisher) -> None:
    publisher.signers[role] = [CryptoSigner.generate_ed25519()]
    publisher.publish(step=1)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, "signature")
    expected = "timestamp" if role == "timestamp" else f"1.{role}"
    if role != "timestamp":
        assert client.files()[f"{role}.json"] == publisher.source.files[f"metadata/{expected}.json"]


def test_a_key_of_one_role_does_not_sign_for_another(client: Client, publisher: Publisher) -> None:
    publisher.signers["timestamp"] = publisher.signers["targets"]
    publisher.publish(step=1)
    refused(client, publisher, "timestamp", "signature")


def test_a_threshold_needs_distinct_keys(client: Client, publisher: Publisher) -> None:
    second = CryptoSigner.generate_ed25519()
    publisher.root.add_key(second.public_key, "timestamp")
    publisher.root.roles["timestamp"].threshold = 2
    publisher.root.version = 2
    publisher.publish_root()
    publisher.publish(step=1)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert caught.value.facts["reason"] == "signature"
    forged = json.loads(publisher.source.files["metadata/timestamp.json"])
    forged["signatures"] *= 2
    publisher.source.files["metadata/timestamp.json"] = json.dumps(forged).encode()
    refused(client, publisher, "timestamp", "malformed")
    forged["signatures"][1] = {**forged["signatures"][0], "keyid": second.public_key.keyid}
    publisher.source.files["metadata/timestamp.json"] = json.dumps(forged).encode()
    refused(client, publisher, "timestamp", "signature")
    publisher.signers["timestamp"].append(second)
    publisher.publish()
    client.trust.refresh(publisher.source)


@pytest.mark.parametrize("role", ROLES)
def test_a_threshold_counts_keys_and_not_ids_of_keys(role: str, client: Client, publisher: Publisher) -> None:
    """GMS-2022-4197, CVE-2026-23992: one key under two ids would be two signatures."""
    (signer,) = publisher.signers[role]
    twin = type(signer.public_key).from_dict("ab" * 32, signer.public_key.to_dict())
    publisher.root.add_key(twin, role)
    publisher.root.roles[role].threshold = 2
    publisher.signers[role].append(CryptoSigner(signer._private_key, twin))
    publisher.root.version += 1
    publisher.publish_root()
    publisher.publish(step=1)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, "signature")
    versions = {name: json.loads(client.files()[f"{name}.json"])["signed"]["version"] for name in ROLES}
    assert versions[role] == 1


@pytest.mark.parametrize(
    "lie",
    [
        lambda root: root["roles"]["timestamp"].update(threshold=0),
        lambda root: root["roles"]["timestamp"].update(threshold=-1),
        lambda root: root["roles"]["timestamp"]["keyids"].append(root["roles"]["timestamp"]["keyids"][0]),
        lambda root: root["roles"].pop("snapshot"),
        lambda root: root["roles"].update(other={"keyids": [], "threshold": 1}),
        lambda root: root.update(version=0),
        lambda root: root.update(version=True),
        lambda root: root.update(version="2"),
        lambda root: root.update(version=2.0),
        lambda root: root.update(version=10**4000),
        lambda root: root.update(expires="never"),
        lambda root: root.update(spec_version="9.9.9"),
        lambda root: root.update(keys=[]),
        lambda root: root.update(roles=None),
        lambda root: root.update(_type="targets"),
    ],
)
def test_a_root_of_wrong_shape_is_refused_though_it_is_well_signed(
    lie: Callable[[dict], object],  # type: ignore[type-arg]
    client: Client,
    publisher: Publisher,
) -> None:
    signed = {**publisher.root.to_dict(), "version": 2}
    lie(signed)
    publisher.source.files["metadata/2.root.json"] = sign_anything(signed, publisher.signers["root"][0])
    before = client.files()
    with pytest.raises(TrustError):
        client.trust.refresh(publisher.source)
    assert client.files() == before


@pytest.mark.parametrize(
    "lie",
    [
        lambda timestamp: timestamp.update(meta={}),
        lambda timestamp: timestamp.update(meta={"snapshot.json": {}}),
        lambda timestamp: timestamp["meta"]["snapshot.json"].update(length=-1),
        lambda timestamp: timestamp["meta"]["snapshot.json"].update(version=10**100),
        lambda timestamp: timestamp["meta"]["snapshot.json"].update(version=0),
        lambda timestamp: timestamp["meta"]["snapshot.json"].update(hashes={}),
        lambda timestamp: timestamp["meta"]["snapshot.json"].update(hashes={"md4": "00"}),
        lambda timestamp: timestamp["meta"]["snapshot.json"].update(hashes={"sha256": 1}),
        lambda timestamp: timestamp["meta"]["snapshot.json"].update(length="9"),
    ],
)
def test_a_timestamp_of_wrong_shape_is_refused_though_it_is_well_signed(
    lie: Callable[[dict], object],  # type: ignore[type-arg]
    client: Client,
    publisher: Publisher,
) -> None:
    publisher.publish(step=1)
    signed = publisher.timestamp.to_dict()
    lie(signed)
    publisher.source.files["metadata/timestamp.json"] = sign_anything(signed, publisher.signers["timestamp"][0])
    before = client.files()
    with pytest.raises(TrustError):
        client.trust.refresh(publisher.source)
    assert client.files()["snapshot.json"] == before["snapshot.json"]


def sign_anything(signed: dict[str, object], signer: CryptoSigner) -> bytes:
    try:
        payload = encode_canonical(signed)
    except Exception:  # floats have no canonical form: a publisher could not sign them either
        payload = json.dumps(signed)
    signature = signer.sign((payload or "").encode())
    return json.dumps({"signed": signed, "signatures": [signature.to_dict()]}).encode()


# --- mix-and-match, endless data, damage ---


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_files_of_two_states_are_never_mixed(role: str, client: Client, publisher: Publisher) -> None:
    publisher.publish(step=1)
    other = getattr(publisher, role)
    other.expires = day(77)
    publisher.put(other)  # same version, well signed, another content
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, "mismatch")
    assert client.files()[f"{role}.json"] == publisher.source.files[f"metadata/1.{role}.json"]


@pytest.mark.parametrize("name", ["timestamp", "2.snapshot", "2.targets", "2.root"])
def test_endless_metadata_is_not_read_to_its_end(name: str, client: Client, publisher: Publisher) -> None:
    publisher.publish(step=1)
    publisher.source.files[f"metadata/{name}.json"] = b" " * 6_000_000
    before = client.files()
    with pytest.raises(TransportError):
        client.trust.refresh(publisher.source)
    after = client.files()
    assert {role for role in after if after[role] != before[role]} <= {"timestamp.json", "snapshot.json"}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_metadata_is_refused_and_never_reaches_the_folder(data: st.DataObject, ram: Path) -> None:
    publisher = _SHARED
    client = Client(Path(tempfile.mkdtemp(dir=ram)), publisher.source.files["metadata/1.root.json"])
    name = data.draw(st.sampled_from(["timestamp.json", "1.snapshot.json", "1.targets.json"]))
    good = publisher.source.files[f"metadata/{name}"]
    at, cut = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 3))
    bad = good[:at] + data.draw(st.binary(max_size=3)) + good[at + cut :]
    if data.draw(st.booleans()):
        bad = good[:at]
    source = MemorySource({**publisher.source.files, f"metadata/{name}": bad})
    try:
        client.trust.refresh(source)
    except (TrustError, TransportError):
        assert bad not in client.files().values()
    else:
        assert json.loads(bad) == json.loads(good)  # white space only, where no hash covers it


_SHARED = Publisher()
_JUNK = st.sampled_from(
    [None, True, 0, -1, 2**70, 10**30, "", "x", "2030-01-01T00:00:00Z", "\x00", [], {}, [[]], {"a": 1}]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_well_signed_metadata_of_any_shape_is_used_or_refused_and_nothing_else(data: st.DataObject, ram: Path) -> None:
    payload = data.draw(st.sampled_from([_SHARED.root, _SHARED.timestamp, _SHARED.snapshot, _SHARED.targets]))
    signed = payload.to_dict()
    at: dict[str, object] = signed
    while True:
        key = data.draw(st.sampled_from(sorted(at)))
        below = at[key]
        if not isinstance(below, dict) or not below or data.draw(st.booleans()):
            break
        at = below
    at[key] = data.draw(_JUNK)
    if isinstance(payload, Root) and key != "version":
        signed["version"] = 2
    client = Client(Path(tempfile.mkdtemp(dir=ram)), _SHARED.source.files["metadata/1.root.json"])
    source = MemorySource(_SHARED.source.files)
    name = {"root": "2.root", "timestamp": "timestamp"}.get(payload.type, f"1.{payload.type}")
    source.files[f"metadata/{name}.json"] = sign_anything(signed, _SHARED.signers[payload.type][0])
    snapshot, timestamp = Snapshot(expires=day(90)), Timestamp(expires=day(30))  # name the files without hashes
    if payload.type == "targets":
        source.files["metadata/1.snapshot.json"] = _SHARED.signed(snapshot)
    if payload.type in ("targets", "snapshot"):
        source.files["metadata/timestamp.json"] = _SHARED.signed(timestamp)
    with contextlib.suppress(TrustError, TransportError):
        client.trust.refresh(source)
        client.trust.releases()
        client.trust.fetch_document(source, "voice/1.0/manifest.json")


def test_json_traps_are_refused(client: Client, publisher: Publisher) -> None:
    good = publisher.source.files["metadata/timestamp.json"]
    twice = good.replace(b'"version":1', b'"version":1,"version":1', 1)
    assert twice != good
    long = good.replace(b'"signatures"', b'"x":' + b"9" * 5000 + b',"signatures"', 1)
    odd = good.replace(b'"signatures"', b'"x":NaN,"signatures"', 1)
    traps = (b"[" * 16_000, b'{"signed":' * 1600, b"null", b"{}", b'{"signed":{}}', b"\xff", good + good, b"")
    for trap in (*traps, twice, long, odd):
        publisher.source.files["metadata/timestamp.json"] = trap
        refused(client, publisher, "timestamp", "malformed")


# --- documents ---


def test_a_document_that_is_not_the_signed_one_is_the_sources_fault(client: Client, publisher: Publisher) -> None:
    target = "voice/1.0/manifest.json"
    path = f"targets/voice/1.0/{digest_of(DOCUMENT)}.manifest.json"
    for bad in (DOCUMENT.replace(b"1", b"2"), DOCUMENT[:-1], b""):
        publisher.source.files[path] = bad
        with pytest.raises(DigestMismatch):
            client.trust.fetch_document(publisher.source, target)
    publisher.source.files[path] = DOCUMENT + b" "
    with pytest.raises(TransportError):
        client.trust.fetch_document(publisher.source, target)
    with pytest.raises(TrustError, match="not signed"):
        client.trust.fetch_document(publisher.source, "voice/2.0/manifest.json")


@pytest.mark.parametrize(
    ("target", "custom"),
    [
        ("voice/1.1/manifest.json", None),
        ("voice/1.1/manifest.json", {"model": "voice", "version": "1.1"}),
        ("voice/1.1/manifest.json", {"model": "voice", "version": "9", "release": 2}),
        ("voice/1.1/manifest.json", {"model": "voice", "version": "1.1", "release": 0}),
        ("../../x/manifest.json", {"model": "../..", "version": "x", "release": 2}),
    ],
)
def test_an_odd_release_is_refused_though_it_is_well_signed(
    target: str, custom: object, client: Client, publisher: Publisher
) -> None:
    publisher.add_document(target, b"x", custom)
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    with pytest.raises(TrustError):
        client.trust.releases()


# --- keys that change ---


@pytest.mark.parametrize("role", ROLES)
def test_a_key_can_be_replaced(role: str, client: Client, publisher: Publisher) -> None:
    publisher.replace_key(role)
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    assert [event.root_version for event in client.events if isinstance(event, RootTrusted)] == [2]
    assert client.files()["root.json"] == publisher.source.files["metadata/2.root.json"]
    assert Trust.initialise(client.folder, publisher.source.files["metadata/1.root.json"]) == 2


def test_a_replaced_key_signs_no_more(client: Client, publisher: Publisher) -> None:
    stolen = publisher.signers["timestamp"]
    publisher.replace_key("timestamp")
    publisher.signers["timestamp"] = stolen
    publisher.publish(step=1)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == ("timestamp", "signature")
    assert json.loads(client.files()["root.json"])["signed"]["version"] == 2  # the new root counts all the same


def test_cached_targets_of_a_replaced_key_count_no_more(client: Client, publisher: Publisher) -> None:
    publisher.replace_key("targets")
    publisher.source.files["metadata/timestamp.json"] = b"{}"
    with pytest.raises(TrustError):
        client.trust.refresh(publisher.source)
    with pytest.raises(TrustError, match="not signed"):
        client.trust.releases()


@pytest.mark.parametrize(
    ("version", "with_old_key", "reason"), [(2, False, "signature"), (3, True, "rollback"), (1, True, "rollback")]
)
def test_a_root_must_follow_the_trusted_one(
    version: int, with_old_key: bool, reason: str, client: Client, publisher: Publisher
) -> None:
    if not with_old_key:
        publisher.signers["root"] = [CryptoSigner.generate_ed25519()]
    publisher.root.version = version
    publisher.source.files["metadata/2.root.json"] = publisher.signed(publisher.root)
    refused(client, publisher, "root", reason)


def test_a_repository_recovers_from_a_thief_who_raised_the_version(client: Client, publisher: Publisher) -> None:
    publisher.timestamp.version = 10**9
    publisher.publish()
    client.trust.refresh(publisher.source)
    publisher.replace_key("timestamp")
    publisher.timestamp.version = 2
    publisher.publish()
    client.trust.refresh(publisher.source)
    assert client.files()["timestamp.json"] == publisher.source.files["metadata/timestamp.json"]


def test_a_machine_off_for_years_follows_the_chain_of_roots(client: Client, publisher: Publisher) -> None:
    for year in range(1, 6):
        publisher.root.expires = day(365 * (year + 1))
        publisher.replace_key("root")
    publisher.timestamp.expires = publisher.snapshot.expires = publisher.targets.expires = day(2000)
    publisher.publish(step=1)
    client.now = day(365 * 5)
    client.trust.refresh(publisher.source)
    assert json.loads(client.files()["root.json"])["signed"]["version"] == 6


def test_an_endless_chain_of_roots_ends(client: Client, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kensho.delivery.trust.MAX_NEW_ROOTS", 3)
    assert MAX_NEW_ROOTS == 256
    for _ in range(5):
        publisher.root.version += 1
        publisher.publish_root()
    client.trust.refresh(publisher.source)
    assert json.loads(client.files()["root.json"])["signed"]["version"] == 4
    client.trust.refresh(publisher.source)
    assert json.loads(client.files()["root.json"])["signed"]["version"] == 6


# --- the folder ---


def test_a_refresh_killed_at_any_operation_goes_on_next_time(publisher: Publisher, ram: Path) -> None:
    root = publisher.source.files["metadata/1.root.json"]
    first = dict(publisher.source.files)
    publisher.replace_key("snapshot")
    publisher.publish(step=1)
    accepted = {digest_of(data) for data in (*first.values(), *publisher.source.files.values())}
    at = 0
    while True:
        at += 1
        client = Client(ram / f"client{at}", root)
        client.trust.refresh(MemorySource(first))
        disk = FaultyDisk(at=at)
        try:
            Trust(client.folder, now=lambda: day(1), emit=client.events.append, disk=disk).refresh(publisher.source)
        except Stopped:
            disk.release()
        for name, data in client.files().items():
            assert name == "refresh.record" or digest_of(data) in accepted
        client.trust.refresh(publisher.source)
        assert client.files()["targets.json"] == publisher.source.files["metadata/2.targets.json"]
        if not disk.is_reached:
            break
    assert at > 20


def test_an_older_view_does_not_overwrite_what_another_process_accepted(client: Client, publisher: Publisher) -> None:
    publisher.publish(step=1)
    older = MemorySource(publisher.source.files)
    publisher.publish(step=1)

    class Racing(MemorySource):
        def read(self, path: str, *, max_bytes: int) -> bytes:
            data = super().read(path, max_bytes=max_bytes)
            if path == "metadata/timestamp.json":  # now another process refreshes from an up-to-date source
                Trust(client.folder, now=lambda: DAY0, emit=client.events.append).refresh(publisher.source)
            return data

    with pytest.raises(StoreBusy):
        client.trust.refresh(Racing(older.files))
    assert client.files()["timestamp.json"] == publisher.source.files["metadata/timestamp.json"]


@pytest.mark.real
def test_what_an_offline_start_needs_imports_neither_tuf_nor_http_nor_cryptography() -> None:
    code = (
        "import sys\n"
        "import kensho.delivery.manifest, kensho.delivery.packs, kensho.delivery.releases, kensho.delivery.layout\n"
        "import kensho.delivery.trusted_folder, kensho.delivery.rollout\n"
        "bad = {'tuf', 'urllib3', 'securesystemslib', 'cryptography', 'msgspec', 'numpy', 'pyfastcdc', 'http.client'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
