"""kensho.testing.tuf_client: versions, expiry and keys of roles, as TUF conformance suites ask for them."""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile
from tuf_suite import NOW, Suite

from kensho.testing.tuf_repository import TufRepository, new_key

pytestmark = pytest.mark.store

# --- rollback, mix-and-match ---


def test_a_timestamp_of_the_same_version_changes_nothing(suite: Suite) -> None:
    assert suite.refresh()
    suite.repo.timestamp.snapshot_meta.version = 100
    suite.repo.put("timestamp")
    assert suite.refresh()
    assert (
        json.loads((suite.metadata / "timestamp.json").read_bytes())["signed"]["meta"]["snapshot.json"]["version"] == 1
    )


def test_an_older_timestamp_is_refused(suite: Suite) -> None:
    suite.repo.publish("timestamp")
    assert suite.refresh()
    suite.repo.timestamp.version = 1
    suite.repo.put("timestamp")
    assert not suite.refresh()
    assert suite.version("timestamp") == 2
    assert suite.repo.requests[-1] == "timestamp.json"


@pytest.mark.parametrize("has_hashes", [True, False])
@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_older_metadata_below_a_new_timestamp_is_refused(role: str, has_hashes: bool, ram: Path) -> None:
    suite = Suite(ram / "client", TufRepository(NOW, has_hashes=has_hashes))
    repo = suite.repo
    assert suite.init()
    repo.publish("targets", "snapshot", "timestamp")
    assert suite.refresh()
    repo.payloads[role].version = 0
    repo.publish(role)
    repo.publish("snapshot", "timestamp") if role == "targets" else repo.publish("timestamp")
    assert not suite.refresh()
    assert suite.version(role) == 2
    assert suite.version("snapshot") == 2
    assert suite.version("timestamp") == (3 if role == "targets" else 2)


def test_what_was_only_changed_below_is_not_asked_for(suite: Suite) -> None:
    assert suite.refresh()
    suite.repo.publish("targets")
    suite.repo.source.paths.clear()
    assert suite.refresh()
    assert suite.repo.requests == ["2.root.json", "timestamp.json"]


@pytest.mark.parametrize("role", ["snapshot", "targets"])
@pytest.mark.parametrize("lie", ["version", "hash"])
def test_metadata_is_what_the_role_above_names(role: str, lie: str, ram: Path) -> None:
    suite = Suite(ram / "client", TufRepository(NOW, has_hashes=lie == "hash"))
    repo = suite.repo
    assert suite.init()
    assert suite.refresh()
    repo.publish("targets", "snapshot", "timestamp")
    name = f"metadata/2.{role}.json"
    if lie == "version":
        repo.payloads[role].version = 3
    else:
        repo.payloads[role].expires += timedelta(days=1)
    repo.source.files[name] = repo.signed(role)
    assert not suite.refresh()
    assert suite.trusted()[role] == 1
    assert suite.repo.requests[-1] == name.removeprefix("metadata/")


def test_a_role_that_vanishes_from_the_snapshot_is_refused(suite: Suite) -> None:
    suite.repo.snapshot.meta["other.json"] = MetaFile(1)
    suite.repo.publish("snapshot", "timestamp")
    assert suite.refresh()
    del suite.repo.snapshot.meta["other.json"]
    suite.repo.publish("snapshot", "timestamp")
    assert not suite.refresh()
    assert suite.version("snapshot") == 2


# --- recovery from a thief who made versions run away ---


@pytest.mark.parametrize(
    ("raised", "rotated"),
    [("timestamp", ["timestamp"]), ("snapshot", ["snapshot", "timestamp"]), ("targets", ["snapshot"])],
)
def test_versions_start_again_below_new_keys(raised: str, rotated: list[str], suite: Suite) -> None:
    repo = suite.repo
    repo.payloads[raised].version = 99_999
    above = {"targets": ["snapshot", "timestamp"], "snapshot": ["timestamp"], "timestamp": []}[raised]
    repo.put(raised)
    repo.publish(*above)
    assert suite.refresh()
    assert suite.version(raised) == 99_999
    for role in rotated:
        repo.rotate(role)
    repo.publish("root")
    repo.payloads[raised].version = 0
    repo.publish(raised, *above)
    assert suite.refresh()
    assert suite.version(raised) == 1


# --- expiry ---


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused_and_not_kept(role: str, suite: Suite) -> None:
    assert suite.refresh()
    suite.repo.payloads[role].expires = NOW - timedelta(days=5)
    suite.repo.publish(role, *{"targets": ["snapshot", "timestamp"], "snapshot": ["timestamp"]}.get(role, []))
    assert not suite.refresh()
    assert suite.version(role) == 1


def test_an_expired_root_is_kept_and_nothing_else(suite: Suite) -> None:
    assert suite.refresh()
    suite.repo.root.expires = NOW - timedelta(days=1)
    suite.repo.publish("root", "targets", "snapshot", "timestamp")
    assert not suite.refresh()
    assert suite.trusted() == {"root": 2, "timestamp": 1, "snapshot": 1, "targets": 1}


def test_expired_metadata_of_ones_own_still_leads_to_newer_one(suite: Suite) -> None:
    suite.repo.timestamp.expires = NOW + timedelta(days=7)
    suite.repo.publish("timestamp")
    assert suite.refresh()
    suite.repo.publish("targets", "snapshot")
    suite.repo.timestamp.expires = NOW + timedelta(days=21)
    suite.repo.publish("timestamp")
    assert suite.refresh(days=18)
    assert suite.trusted() == {"root": 1, "timestamp": 3, "snapshot": 2, "targets": 2}
    assert not suite.refresh(days=22)


# --- keys ---


@dataclass(frozen=True)
class Signed:
    """Which keys (by number) a role has, how many must sign, and which did."""

    keys: list[int]
    threshold: int
    signers: list[int] = field(default_factory=list)


ONE, FIVE = Signed([1], 1, [1]), Signed([0, 1, 2, 3, 4], 3, [0, 2, 4])


@pytest.mark.parametrize(
    ("roots", "is_good"),
    [
        ([ONE, Signed([2], 1, [2, 1]), Signed([2], 1, [2])], True),
        ([Signed([1], 1, [3, 1, 4]), Signed([2], 1, [3, 2, 1, 4]), Signed([2], 1, [3, 2, 4])], True),
        ([FIVE, Signed(FIVE.keys, 3, [0, 4, 1]), Signed(FIVE.keys, 3, [0, 1, 3])], True),
        ([FIVE, Signed([0, 1, 3, 4, 5], 3, [0, 4, 1])], True),
        ([FIVE, Signed([0, 1, 3, 4, 5], 3, [0, 2, 4, 5]), Signed([0, 1, 3, 4, 5], 3, [0, 4, 5])], True),
        ([FIVE, Signed([5, 6, 7, 8, 9], 3, [0, 2, 4, 5, 6, 7]), Signed([5, 6, 7, 8, 9], 3, [5, 6, 7])], True),
        ([Signed([1, 2, 3], 1, [1]), Signed([1, 2, 3], 2, [1, 2])], True),
        ([Signed([1, 2, 3], 2, [1, 2]), Signed([1, 2, 3], 1, [1, 2]), Signed([1, 2, 3], 1, [1])], True),
        ([ONE, Signed([1, 2], 2, [1, 2])], True),
        ([ONE, Signed([2], 1, [2, 3, 4])], False),
        ([ONE, Signed([2], 1, [1, 3, 4])], False),
        ([FIVE, Signed([0, 1, 3, 4, 5], 3, [0, 2, 4])], False),
        ([FIVE, Signed([0, 1, 3, 4, 5], 3, [0, 4, 5])], False),
        ([Signed([1, 2, 3], 1, [1]), Signed([1, 2, 3], 2, [2])], False),
        ([Signed([1, 2, 3], 2, [1, 2]), Signed([1, 2, 3], 1, [1])], False),
    ],
)
def test_a_root_is_signed_as_the_one_before_and_it_itself_ask(roots: list[Signed], is_good: bool, ram: Path) -> None:
    suite = Suite(ram / "client", TufRepository(NOW))
    repo, keys = suite.repo, [new_key() for _ in range(10)]
    for version, wanted in enumerate(roots, start=1):
        repo.root.roles["root"].keyids.clear()
        give_keys(repo, "root", wanted, keys)
        repo.root.version = version
        repo.put("root")
    assert suite.init()
    assert suite.refresh() is is_good
    last = len(roots) if is_good else len(roots) - 1
    assert (suite.metadata / "root.json").read_bytes() == repo.source.files[f"metadata/{last}.root.json"]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
@pytest.mark.parametrize(
    ("signed", "is_good"),
    [
        (Signed([2], 1, [2]), True),
        (Signed([1], 1, [3, 1, 4]), True),
        (Signed([2], 1, [1, 3, 4]), False),
        (Signed([0, 1, 3, 4, 5], 3, [0, 2, 4]), False),
        (Signed([0, 1, 3, 4, 5], 3, [0, 4]), False),
        (FIVE, True),
        (Signed(FIVE.keys, 3, [1, 2, 3]), True),
        (Signed(FIVE.keys, 6, [0, 1, 2, 3, 4]), False),
    ],
)
def test_a_role_is_signed_as_the_root_asks(role: str, signed: Signed, is_good: bool, suite: Suite) -> None:
    repo, keys = suite.repo, [new_key() for _ in range(6)]
    assert suite.refresh()
    repo.root.roles[role].keyids.clear()
    give_keys(repo, role, signed, keys)
    repo.publish("root", "targets", "snapshot", "timestamp")
    assert suite.refresh() is is_good
    assert suite.version("root") == 2
    assert suite.version(role) == (2 if is_good else 1)


def give_keys(repo: TufRepository, role: str, wanted: Signed, keys: list[CryptoSigner]) -> None:
    for number in wanted.keys:
        repo.root.add_key(keys[number].public_key, role)
    repo.root.roles[role].threshold = wanted.threshold
    repo.signers[role] = [keys[number] for number in wanted.signers]


def test_an_id_without_a_key_signs_nothing(suite: Suite) -> None:
    suite.repo.root.roles["snapshot"].threshold = 2
    suite.repo.root.roles["snapshot"].keyids.append(new_key().public_key.keyid)
    suite.repo.publish("root", "snapshot", "timestamp")
    assert not suite.refresh()


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", "..", "C:\\outside"])
def test_a_target_never_leaves_its_folder(name: str, suite: Suite) -> None:
    suite.repo.add_target("targets", name, b"1")
    suite.repo.publish("targets", "snapshot", "timestamp")
    assert suite.download(name)
    assert suite.artifacts() == [b"1"]
    assert not list(suite.targets.parent.glob("outside*"))
