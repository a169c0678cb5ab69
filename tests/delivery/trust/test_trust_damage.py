"""Metadata that is damaged, endless or of an odd shape, even well signed, is refused and never reaches the folder."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner
from trusting import Client, Publisher, day, refused
from tuf.api.metadata import Root, Snapshot, Timestamp

from kensho.base.errors import TransportError, TrustError
from kensho.testing.repository import MemorySource

pytestmark = pytest.mark.store


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
