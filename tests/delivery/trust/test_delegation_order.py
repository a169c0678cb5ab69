"""Which delegated roles are visited for a target, in which order, at what cost; and what their names may be."""

from collections.abc import Callable

import pytest
from delegating import NOW, Client, Delegation, edge
from tuf.api.metadata import Delegations, SuccinctRoles, TargetFile, Targets

from kensho.base.errors import TrustError
from kensho.delivery.delegations import MAX_DELEGATIONS, MAX_PATTERNS, find_target
from kensho.testing.tuf_repository import TufRepository, new_key

pytestmark = pytest.mark.store

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
