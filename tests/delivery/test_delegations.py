"""kensho.delivery.delegations and trust: who may sign a target, in which order, and that nobody else can."""

import contextlib
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import Delegations, MetaFile, SuccinctRoles, TargetFile, Targets

from kensho.base.errors import TransportError, TrustError
from kensho.delivery.delegations import MAX_DELEGATIONS, MAX_PATTERNS, find_target
from kensho.delivery.trust import Trust
from kensho.testing.tuf_repository import TufRepository, new_key

pytestmark = pytest.mark.store

NOW = datetime(2026, 11, 20, tzinfo=UTC)


class Client:
    """A trusted folder that has refreshed from the repository; `find` returns a target's length."""

    def __init__(self, folder: Path, repo: TufRepository) -> None:
        self.folder, self.repo, self.now = folder, repo, NOW
        Trust.initialise(folder, repo.source.files["metadata/1.root.json"])
        self.again()

    def again(self) -> None:
        """As a new process would."""
        self.trust = Trust(self.folder, now=lambda: self.now, emit=lambda event: None)
        self.trust.refresh(self.repo.source)

    def find(self, path: str) -> int:
        return self.trust.find_target(self.repo.source, path).length

    def visited(self, path: str) -> list[str]:
        """The delegated roles that are asked for in a search of `path`, which nobody has."""
        self.repo.source.paths.clear()
        with pytest.raises(TrustError, match="has not signed"):
            self.find(path)
        return [name.removeprefix("1.").removesuffix(".json") for name in self.repo.requests]

    def roles(self) -> set[str]:
        return {path.stem for path in self.folder.glob("*.json")}


Delegation = tuple[str, str, dict[str, object]]


@pytest.fixture
def made(ram: Path) -> Callable[..., Client]:
    def make(*delegations: Delegation, targets: dict[str, str] | None = None, has_hashes: bool = True) -> Client:
        repo = TufRepository(NOW, has_hashes=has_hashes)
        for delegator, role, terms in delegations:
            repo.delegate(delegator, role, **terms)  # type: ignore[arg-type]
        for path, role in (targets or {}).items():
            repo.add_target(role, path, path.encode())
        roles = dict.fromkeys(role for _, role, _ in delegations)
        repo.publish(*roles, "targets", "snapshot", "timestamp")
        return Client(ram / "trusted", repo)

    return make


def edge(delegator: str, role: str, **terms: object) -> Delegation:
    return delegator, role, terms


# --- the order ---


@pytest.mark.parametrize(
    ("delegations", "order"),
    [
        ([edge("targets", "A"), edge("targets", "B"), edge("B", "C")], "ABC"),
        ([edge("targets", "A"), edge("targets", "B"), edge("A", "C"), edge("A", "D")], "ACDB"),
        ([edge("targets", "A"), edge("targets", "B"), edge("A", "C"), edge("C", "D")], "ACDB"),
        ([edge("targets", "A"), edge("targets", "B"), edge("A", "C", is_terminating=True), edge("A", "D")], "AC"),
        ([edge("targets", "A"), edge("targets", "B"), edge("A", "C", is_terminating=True), edge("C", "D")], "ACD"),
        ([edge("targets", "A", paths=["*.py"]), edge("targets", "B"), edge("A", "C")], "B"),
        ([edge("targets", "A"), edge("targets", "B"), edge("A", "C", paths=["*.py"]), edge("C", "D")], "AB"),
        ([edge("targets", "A"), edge("targets", "B"), edge("B", "C"), edge("C", "D"), edge("D", "B")], "ABCD"),
        ([edge("targets", "A"), edge("A", "A")], "A"),
        ([edge("targets", "A"), edge("targets", "B"), edge("B", "C"), edge("A", "C")], "ACB"),
        ([edge("targets", "A"), edge("targets", "B"), edge("B", "C"), edge("A", "C", paths=["*.py"])], "ABC"),
    ],
)
def test_roles_are_visited_in_pre_order_each_once(
    delegations: list[Delegation], order: str, made: Callable[..., Client]
) -> None:
    client = made(*delegations)
    assert "".join(client.visited("missing")) == order
    assert client.visited("missing") == []  # all are in the folder now
    assert client.roles() == {"root", "timestamp", "snapshot", "targets", *order}


@pytest.mark.parametrize(
    ("path", "visited"),
    [
        ("README.md", "A"),
        ("releases/x/x_v1", "BC"),
        ("releases/y/y_v1.zip", "BD"),
        ("plain", ""),
    ],
)
def test_a_target_is_found_where_every_role_on_the_way_allows_it(
    path: str, visited: str, made: Callable[..., Client]
) -> None:
    owners = {"plain": "targets", "README.md": "A", "releases/x/x_v1": "C", "releases/y/y_v1.zip": "D"}
    client = made(*TREE, targets=owners)
    client.repo.source.paths.clear()
    assert client.find(path) == len(path)
    assert "".join(name.removeprefix("1.").removesuffix(".json") for name in client.repo.requests) == visited
    assert client.trust.fetch_document(client.repo.source, path) == path.encode()


TREE = (
    edge("targets", "A", paths=["*.doc", "*.md"]),
    edge("targets", "B", paths=["releases/*/*"]),
    edge("B", "C", paths=["releases/x/*"]),
    edge("B", "D", paths=["releases/y/*.zip"]),
)


def test_a_role_cannot_sign_what_was_not_delegated_to_it(made: Callable[..., Client]) -> None:
    client = made(*TREE, targets={"releases/z/z_v1.zip": "D", "plain": "A"})
    assert client.visited("releases/z/z_v1.zip") == ["B"]
    assert client.visited("plain") == []


def test_the_more_trusted_role_wins(made: Callable[..., Client]) -> None:
    client = made(edge("targets", "A"), edge("targets", "B"))
    for role, data in (("A", b"of A"), ("B", b"B's, longer")):
        client.repo.add_target(role, "x", data)
    client.repo.publish("A", "B", "snapshot", "timestamp")
    client.again()
    assert client.find("x") == 4


def test_at_most_32_delegated_roles_are_visited() -> None:
    seen = []

    def load(role: str, delegator: str) -> Targets:
        seen.append(role)
        return chain(len(seen) + 1)

    assert find_target("x", chain(1), load) is None
    assert len(seen) == MAX_DELEGATIONS == 32


def chain(number: int) -> Targets:
    repo = TufRepository(NOW)
    repo.delegate("targets", f"role{number}")
    return repo.targets()


@pytest.mark.parametrize("patterns", [["x"] * (MAX_PATTERNS + 1), ["x" * 1025], ["*a" * 33], ["?" * 33], ["[a]" * 33]])
def test_patterns_that_would_cost_too_much_are_refused(patterns: list[str], made: Callable[..., Client]) -> None:
    client = made(edge("targets", "A", paths=patterns))
    with pytest.raises(TrustError, match="patterns"):
        client.find("x")


def test_many_large_roles_are_refused_in_bounded_memory(
    made: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = made(edge("targets", "A"), edge("targets", "B"))
    monkeypatch.setattr("kensho.delivery.trust.MAX_SEARCH_BYTES", 600)
    with pytest.raises(TrustError, match="too large"):
        client.find("x")


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


def test_succinct_delegations_lead_to_one_bin(made: Callable[..., Client]) -> None:
    client = made()
    repo, key = client.repo, new_key()
    bins = SuccinctRoles([], 1, 8, "bin")
    repo.targets().delegations = Delegations({}, None, bins)
    repo.targets().add_key(key.public_key)
    for role in bins.get_roles():
        repo.payloads[role], repo.signers[role] = Targets(expires=repo.expires), [key]
    repo.add_target("bin-fc", "bar", b"123")
    repo.publish(*bins.get_roles(), "targets", "snapshot", "timestamp")
    client.again()
    repo.source.paths.clear()
    assert client.find("bar") == 3
    assert repo.requests == ["1.bin-fc.json"]


# --- names ---


@pytest.mark.parametrize(
    "role",
    ["?", "#", "/delegated", "../delegated", "a/b", "..", ".", "root.json", "é", "refresh", "first_root", "a%2Fb"],
)
def test_the_name_of_a_role_is_a_safe_file_name(role: str, made: Callable[..., Client]) -> None:
    client = made(edge("targets", role), targets={"x": role})
    outside = sorted(path.name for path in client.folder.parent.iterdir())
    assert client.find("x") == 1
    assert sorted(path.name for path in client.folder.parent.iterdir()) == outside
    assert len(client.roles()) == 5
    client.again()
    client.repo.source.paths.clear()
    assert client.find("x") == 1
    assert client.repo.requests == []  # found in the folder again


@pytest.mark.parametrize("role", ["x" * 201, "é" * 40, "\ud800" * 30])
def test_a_name_that_no_file_can_have_is_refused(role: str, made: Callable[..., Client]) -> None:
    client = made(edge("targets", "A"))
    delegations = client.repo.targets().delegations
    assert delegations is not None
    assert delegations.roles is not None
    delegations.roles["A"].name = role
    delegations.roles[role] = delegations.roles.pop("A")
    top = Targets(targets={"y": TargetFile(1, {"sha256": "00"}, "y")}, delegations=delegations)
    client.trust._trusted._trusted_set["targets"] = top  # type: ignore[index,union-attr]
    with pytest.raises(TrustError, match="cannot be used"):
        client.find("x")
