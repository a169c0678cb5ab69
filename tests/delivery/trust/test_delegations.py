"""kensho.delivery.delegations and trust: each role is verified against who delegates to it now, and nobody else."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from delegating import NOW, Client, edge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import MetaFile

from kensho.base.errors import TransportError, TrustError
from kensho.testing.tuf_repository import TufRepository, new_key

pytestmark = pytest.mark.store

# --- each role is verified against who delegates to it now ---


@pytest.mark.parametrize("is_new_process", [False, True])
def test_cached_role_is_verified_against_current_delegator(made: Callable[..., Client], is_new_process: bool) -> None:
    """C is good for A, which delegates to it with the key that C is signed with. B delegates to it with another key."""
    client = made(
        edge("targets", "A", paths=["a/*"]),
        edge("targets", "B", paths=["b/*"]),
        edge("A", "C", paths=["a/*"]),
        edge("B", "C", paths=["b/*"], key=new_key()),
        targets={"a/x": "C", "b/x": "C"},
    )
    assert client.find("a/x") == 3
    before = client.folder.joinpath("C.json").read_bytes()
    if is_new_process:
        client.again()
    with pytest.raises(TrustError) as caught:
        client.find("b/x")
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == ("C", "signature")
    assert client.folder.joinpath("C.json").read_bytes() == before
    assert client.find("a/x") == 3


def test_a_shared_role_that_both_delegators_key_signed_serves_both(made: Callable[..., Client]) -> None:
    client = made(
        edge("targets", "A", paths=["a/*"]), edge("targets", "B", paths=["b/*"]), edge("A", "C", paths=["a/*"])
    )
    client.repo.delegate("B", "C", paths=["b/*"])
    client.repo.add_target("C", "a/x", b"1")
    client.repo.add_target("C", "b/x", b"22")
    client.repo.publish("C", "B", "snapshot", "timestamp")
    client.again()
    assert (client.find("a/x"), client.find("b/x")) == (1, 2)


def test_a_delegation_taken_back_counts_at_once(made: Callable[..., Client]) -> None:
    client = made(edge("targets", "A"), targets={"x": "A"})
    assert client.find("x") == 1
    delegations = client.repo.targets().delegations
    assert delegations is not None
    assert delegations.roles is not None
    client.repo.targets().revoke_key(delegations.roles["A"].keyids[0], "A")
    client.repo.targets().add_key(new_key().public_key, "A")
    client.repo.publish("targets", "snapshot", "timestamp")
    client.again()
    with pytest.raises(TrustError, match="not signed"):
        client.find("x")


@pytest.mark.parametrize("has_hashes", [True, False])
def test_an_older_delegated_role_is_refused(made: Callable[..., Client], has_hashes: bool) -> None:
    client = made(edge("targets", "A"), targets={"x": "A"}, has_hashes=has_hashes)
    client.repo.publish("A", "snapshot", "timestamp")
    client.again()
    client.find("x")
    client.repo.snapshot.meta["A.json"] = MetaFile(1)
    client.repo.publish("snapshot", "timestamp")
    with pytest.raises(TrustError) as caught:
        client.again()
    assert caught.value.facts["reason"] == "rollback"
    client.repo.snapshot.meta["A.json"] = MetaFile(3)  # named, but the old one is served
    client.repo.source.files["metadata/3.A.json"] = client.repo.source.files["metadata/1.A.json"]
    client.repo.publish("snapshot", "timestamp")
    client.again()
    with pytest.raises(TrustError):
        client.find("x")
    assert json.loads(client.folder.joinpath("A.json").read_bytes())["signed"]["version"] == 2


def test_an_expired_delegated_role_is_refused_wherever_it_comes_from(made: Callable[..., Client]) -> None:
    client = made(edge("targets", "A"), targets={"x": "A"})
    client.repo.targets("A").expires = NOW + timedelta(days=7)
    client.repo.publish("A", "snapshot", "timestamp")
    client.again()
    assert client.find("x") == 1
    client.now = NOW + timedelta(days=18)
    client.again()
    with pytest.raises(TrustError) as caught:
        client.find("x")
    assert caught.value.facts["reason"] == "expired"
    client.repo.targets("A").expires = NOW + timedelta(days=21)
    client.repo.publish("A", "snapshot", "timestamp")
    client.again()
    assert client.find("x") == 1


def test_a_delegated_role_is_the_one_that_the_snapshot_names(made: Callable[..., Client]) -> None:
    client = made(edge("targets", "A"))
    client.repo.targets("A").expires += timedelta(days=1)
    client.repo.source.files["metadata/1.A.json"] = client.repo.signed("A")  # well signed, right version, another file
    with pytest.raises(TrustError) as caught:
        client.find("x")
    assert caught.value.facts["reason"] == "mismatch"
    del client.repo.snapshot.meta["A.json"]
    client.repo.publish("snapshot", "timestamp")
    with pytest.raises(TrustError):
        client.again()  # a role does not vanish from the snapshot
    assert "A" not in client.roles()


def test_a_delegated_role_that_cannot_be_had_is_no_verdict(made: Callable[..., Client]) -> None:
    client = made(edge("targets", "A"), edge("targets", "B"), targets={"x": "B"})
    del client.repo.source.files["metadata/1.A.json"]
    with pytest.raises(TransportError):
        client.find("x")


# --- thresholds ---


def test_a_threshold_of_a_delegation_counts_keys_and_not_ids(made: Callable[..., Client]) -> None:
    client = made(edge("targets", "A"), targets={"x": "A"})
    delegations = client.repo.targets().delegations
    assert delegations is not None
    assert delegations.roles is not None
    role = delegations.roles["A"]
    (first,) = role.keyids
    twin = type(delegations.keys[first]).from_dict("ab" * 32, delegations.keys[first].to_dict())
    delegations.keys["ab" * 32] = twin
    role.keyids.append("ab" * 32)
    role.threshold = 2
    (signer,) = client.repo.signers["A"]
    client.repo.signers["A"].append(type(signer)(signer._private_key, twin))
    client.repo.publish("A", "targets", "snapshot", "timestamp")
    client.again()
    with pytest.raises(TrustError) as caught:
        client.find("x")
    assert caught.value.facts["reason"] == "signature"
    other = new_key()
    client.repo.targets().add_key(other.public_key, "A")
    client.repo.signers["A"].append(other)
    client.repo.publish("A", "targets", "snapshot", "timestamp")
    client.again()
    assert client.find("x") == 1


@pytest.mark.parametrize(
    "lie",
    [
        lambda d: d["roles"][0].update(threshold=0),
        lambda d: d["roles"][0].update(threshold=-1),
        lambda d: d["roles"][0]["keyids"].append(d["roles"][0]["keyids"][0]),
        lambda d: d["roles"][0].update(name="root"),
        lambda d: d["roles"][0].update(name=""),
        lambda d: d["roles"][0].update(name=7),
        lambda d: d["roles"][0].update(paths="*"),
        lambda d: d["roles"][0].update(path_hash_prefixes=["00"]),
        lambda d: d["roles"].append(d["roles"][0]),
        lambda d: d.update(roles={}),
        lambda d: d.update(succinct_roles={"keyids": [], "threshold": 1, "bit_length": 8, "name_prefix": "x"}),
        lambda d: (
            d.pop("roles"),
            d.update(succinct_roles={"keyids": [], "threshold": 1, "bit_length": 10**9, "name_prefix": "x"}),
        ),
        lambda d: d["keys"].clear() or d["roles"][0]["keyids"].clear(),
    ],
)
def test_odd_delegations_are_refused_though_they_are_well_signed(
    lie: Callable[[dict], object],  # type: ignore[type-arg]
    made: Callable[..., Client],
) -> None:
    client = made(edge("targets", "A"), targets={"x": "A"})
    assert client.find("x") == 1
    signed = client.repo.targets().to_dict()
    signed["version"] = 3
    lie(signed["delegations"])
    (signer,) = client.repo.signers["targets"]
    signature = signer.sign(encode_canonical(signed).encode())
    data = json.dumps({"signed": signed, "signatures": [signature.to_dict()]}).encode()
    client.repo.source.files["metadata/3.targets.json"] = data
    client.repo.snapshot.meta["targets.json"] = MetaFile(3)
    client.repo.publish("snapshot", "timestamp")
    with pytest.raises(TrustError) as caught:
        client.again()
        client.find("x")
    assert caught.value.facts["reason"] in ("malformed", "signature")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_delegations_of_any_shape_are_used_or_refused_and_nothing_else(data: st.DataObject, ram: Path) -> None:
    repo = TufRepository(NOW, has_hashes=False)
    repo.delegate("targets", "A", paths=["a/*"])
    repo.delegate("A", "C", paths=["a/b*"])
    repo.add_target("C", "a/b", b"1")
    repo.publish("A", "C", "targets", "snapshot", "timestamp")
    role = data.draw(st.sampled_from(["targets", "A", "C"]))
    signed = repo.targets(role).to_dict()
    place: object = signed
    for _ in range(data.draw(st.integers(0, 6))):
        inner = place if isinstance(place, dict) else dict(enumerate(place)) if isinstance(place, list) else {}
        nested = [value for value in inner.values() if isinstance(value, dict | list) and value]
        place = data.draw(st.sampled_from(nested)) if nested else place
    odd = st.sampled_from([None, True, 0, -1, 2**62, "", "x", "../x", [], {}, ["x"], {"x": 1}, [[]], "*" * 40])
    if isinstance(place, dict):
        place[data.draw(st.sampled_from([*place, "more"]))] = data.draw(odd)
    elif isinstance(place, list):
        place.append(data.draw(odd))
    signature = repo.signers[role][0].sign(encode_canonical(signed).encode())
    document = json.dumps({"signed": signed, "signatures": [signature.to_dict()]}).encode()
    repo.source.files[f"metadata/{repo.targets(role).version}.{role}.json"] = document
    with tempfile.TemporaryDirectory(dir=ram) as folder, contextlib.suppress(TrustError, TransportError):
        client = Client(Path(folder) / "trusted", repo)
        assert client.find("a/b") >= 0
        client.trust.fetch_document(repo.source, "a/b")
