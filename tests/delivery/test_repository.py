"""kensho.delivery.repository and signing: only what these keys signed is extended; the newest state is found."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from kensho.base.errors import ConfigError, StoreBusy, TrustError
from kensho.delivery.disk import RealDisk
from kensho.delivery.keys import keygen
from kensho.delivery.releases import describe_release
from kensho.delivery.repository import Repository, repository_lock, resign
from kensho.delivery.signing import validity_of

NOW = datetime(2026, 11, 20, 9, 14, 30, 500, tzinfo=UTC)
DISK = RealDisk()


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publisher") / "keys"
    keygen(folder)
    return folder


def commit(repo: Path, keys: Path, version: str, release: int, now: datetime = NOW) -> dict[str, int]:
    with repository_lock(DISK, repo):
        repository = Repository.open(repo, keys, DISK)
        custom = describe_release("voice", version, release)
        repository.add_target(f"voice/{version}/manifest.json", version.encode(), custom)
        return repository.commit(now, validity_of(None))


def test_each_commit_raises_the_versions_and_keeps_what_was_there(keys: Path, ram: Path) -> None:
    assert commit(ram, keys, "1.0", 1) == {"root": 1, "targets": 1, "snapshot": 1, "timestamp": 1}
    assert commit(ram, keys, "1.1", 2) == {"root": 1, "targets": 2, "snapshot": 2, "timestamp": 2}
    repository = Repository.open(ram, keys, DISK)
    assert [(ref.version, ref.release) for ref in repository.releases()] == [("1.1", 2), ("1.0", 1)]
    assert repository.read_target("voice/1.0/manifest.json") == b"1.0"
    assert repository.root_path == ram / "metadata" / "1.root.json"


def test_metadata_expires_when_it_should_and_is_bound_together(keys: Path, ram: Path) -> None:
    commit(ram, keys, "1.0", 1)
    folder = ram / "metadata"
    root = Metadata[Root].from_file(str(folder / "1.root.json")).signed
    targets = Metadata[Targets].from_file(str(folder / "1.targets.json")).signed
    snapshot = Metadata[Snapshot].from_file(str(folder / "1.snapshot.json")).signed
    timestamp = Metadata[Timestamp].from_file(str(folder / "timestamp.json")).signed
    days = [(signed.expires - NOW.replace(microsecond=0)).days for signed in (root, targets, snapshot, timestamp)]
    assert days == [365, 90, 90, 30]
    assert root.consistent_snapshot
    timestamp.snapshot_meta.verify_length_and_hashes((folder / "1.snapshot.json").read_bytes())
    snapshot.meta["targets.json"].verify_length_and_hashes((folder / "1.targets.json").read_bytes())
    assert timestamp.snapshot_meta.hashes
    assert snapshot.meta["targets.json"].hashes


def test_what_these_keys_did_not_sign_is_never_signed_again(keys: Path, ram: Path) -> None:
    commit(ram, keys, "1.0", 1)
    for name in ("1.targets.json", "1.snapshot.json", "timestamp.json", "1.root.json"):
        path = ram / "metadata" / name
        original = path.read_bytes()
        planted = json.loads(original)
        planted["signed"]["expires"] = "2036-01-01T00:00:00Z"
        for data in (json.dumps(planted).encode(), b"{}", b"", original[:-9]):
            path.chmod(0o600)
            path.write_bytes(data)
            with pytest.raises(TrustError):
                Repository.open(ram, keys, DISK)
        path.unlink()
        if name not in ("timestamp.json", "1.root.json"):
            with pytest.raises(TrustError):
                Repository.open(ram, keys, DISK)
        path.write_bytes(original)
    assert Repository.open(ram, keys, DISK).releases()


def test_a_document_that_was_changed_is_not_built_upon(keys: Path, ram: Path) -> None:
    commit(ram, keys, "1.0", 1)
    (path,) = (ram / "targets" / "voice" / "1.0").iterdir()
    path.chmod(0o600)
    for data in (b"1.1", b"longer than signed", b""):
        path.write_bytes(data)
        with pytest.raises(TrustError, match="signed one"):
            Repository.open(ram, keys, DISK).read_target("voice/1.0/manifest.json")
    with pytest.raises(TrustError):
        Repository.open(ram, keys, DISK).read_target("voice/9/manifest.json")


def test_a_document_that_two_releases_share_is_written_once_and_mended_if_damaged(keys: Path, ram: Path) -> None:
    def commit_shared() -> os.stat_result:
        repository = Repository.open(ram, keys, DISK)
        digest = repository.add_target("voice/chunks/shared.chunks", b"shared")
        repository.commit(NOW, validity_of(None))
        return (ram / "targets" / "voice" / "chunks" / f"{digest}.shared.chunks").stat()

    first = commit_shared()
    assert commit_shared().st_ino == first.st_ino
    (path,) = (ram / "targets" / "voice" / "chunks").iterdir()
    path.chmod(0o600)
    path.write_bytes(b"damage")
    commit_shared()
    assert path.read_bytes() == b"shared"


def test_a_repository_of_other_keys_is_refused(keys: Path, ram: Path) -> None:
    commit(ram / "repo", keys, "1.0", 1)
    keygen(ram / "others")
    with pytest.raises(TrustError, match="other keys"):
        Repository.open(ram / "repo", ram / "others", DISK)


def test_a_key_that_is_not_the_roles_never_signs(keys: Path, ram: Path) -> None:
    commit(ram / "repo", keys, "1.0", 1)
    keygen(ram / "mixed")
    (ram / "mixed" / "root.pub").write_bytes((keys / "root.pub").read_bytes())
    before = (ram / "repo" / "metadata" / "timestamp.json").read_bytes()
    with pytest.raises(ConfigError, match="targets key"):
        commit(ram / "repo", ram / "mixed", "1.1", 2)
    assert (ram / "repo" / "metadata" / "timestamp.json").read_bytes() == before


def test_two_publishers_do_not_work_at_once(keys: Path, ram: Path) -> None:
    with repository_lock(DISK, ram), pytest.raises(StoreBusy):
        commit(ram, keys, "1.0", 1)
    commit(ram, keys, "1.0", 1)


def test_publishing_goes_on_with_the_root_key_in_a_safe(keys: Path, ram: Path) -> None:
    commit(ram / "repo", keys, "1.0", 1)
    online = ram / "online"
    online.mkdir(mode=0o700)
    for role in ("targets", "snapshot", "timestamp"):
        (online / f"{role}.pem").write_bytes((keys / f"{role}.pem").read_bytes())
        (online / f"{role}.pem").chmod(0o600)
    (online / "root.pub").write_bytes((keys / "root.pub").read_bytes())
    assert commit(ram / "repo", online, "1.1", 2)["timestamp"] == 2


@pytest.mark.parametrize(
    ("later_days", "signed"),
    [
        (1, {"timestamp": 2}),
        (59, {"timestamp": 2}),
        (61, {"targets": 2, "snapshot": 2, "timestamp": 2}),
        (400, {"root": 2, "targets": 2, "snapshot": 2, "timestamp": 2}),
    ],
)
def test_resigning_renews_what_would_expire_before_the_new_timestamp(
    later_days: int, signed: dict[str, int], keys: Path, ram: Path
) -> None:
    commit(ram, keys, "1.0", 1)
    later = NOW + timedelta(days=later_days)
    assert resign(ram, keys, now=later) == signed
    repository = Repository.open(ram, keys, DISK)
    assert repository.read_target("voice/1.0/manifest.json") == b"1.0"
    assert resign(ram, keys, now=later)["timestamp"] == 3


def test_resigning_what_is_no_repository_makes_nothing(keys: Path, ram: Path) -> None:
    with pytest.raises(ConfigError):
        resign(ram / "absent", keys, now=NOW)
    assert not (ram / "absent").exists()


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_an_expiry_that_makes_no_sense_is_refused(days: int) -> None:
    with pytest.raises(ConfigError):
        validity_of(days)
