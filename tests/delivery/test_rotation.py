"""`kensho resign --rotate`: a key is replaced, clients follow; a thief's or a lost key is no end, nor is a kill."""

import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from kensho.base.errors import ConfigError, KenshoError, TrustError
from kensho.delivery.folder_source import FolderSource
from kensho.delivery.keys import ROLES, load_public_key, load_signer
from kensho.delivery.repository import resign
from kensho.delivery.trust import Trust
from kensho.testing.client import FIRST, NOW, model_files
from kensho.testing.disk import FaultyDisk, Stopped
from kensho.testing.power_cut import PowerCutDisk
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store


class Publisher(SimulatedRepository):
    """Its folders are open, so that keys can be lost and stolen."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch, now=NOW)
        self.keys = scratch / "keys"

    def rotate(self, role: str, **more: object) -> dict[str, int]:
        return resign(self.folder, self.keys, rotate=role, now=NOW, **more)  # type: ignore[arg-type]

    def resign(self, now: datetime = NOW) -> dict[str, int]:
        return resign(self.folder, self.keys, now=now)

    def read(self, name: str) -> dict:  # type: ignore[type-arg]
        found: dict = json.loads((self.folder / "metadata" / name).read_bytes())["signed"]  # type: ignore[type-arg]
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("made")
    Publisher(scratch).publish("voice", "1.0", model_files(FIRST))
    return scratch


@pytest.fixture
def publisher(made: Path, ram: Path) -> Publisher:
    shutil.copytree(made, ram / "publisher")
    return Publisher(ram / "publisher")


class Client:
    """A machine that refreshed before anything was rotated."""

    def __init__(self, folder: Path, publisher: Publisher) -> None:
        self.folder, self.source, self.now = folder, FolderSource(publisher.folder), NOW
        Trust.initialise(folder, publisher.root)
        self.refresh()

    def refresh(self) -> list[str]:
        trust = Trust(self.folder, now=lambda: self.now, emit=lambda event: None)
        trust.refresh(self.source)
        return [ref.version for ref in trust.releases()]

    def version(self, role: str) -> int:
        found: int = json.loads((self.folder / f"{role}.json").read_bytes())["signed"]["version"]
        return found


@pytest.fixture
def client(publisher: Publisher, ram: Path) -> Client:
    return Client(ram / "trusted", publisher)


@pytest.mark.parametrize(
    ("role", "signed"),
    [
        ("root", {"root"}),
        ("targets", {"root", "targets", "snapshot", "timestamp"}),
        ("snapshot", {"root", "snapshot", "timestamp"}),
        ("timestamp", {"root", "timestamp"}),
    ],
)
def test_a_rotation_signs_what_it_must_and_clients_follow(
    role: str, signed: set[str], publisher: Publisher, client: Client, ram: Path
) -> None:
    before = {name: load_public_key(publisher.keys, name).keyid for name in ROLES}
    assert publisher.rotate(role) == dict.fromkeys(signed, 2)
    after = {name: load_public_key(publisher.keys, name).keyid for name in ROLES}
    assert {name for name in ROLES if before[name] != after[name]} == {role}
    assert load_signer(publisher.keys, role).public_key.keyid == after[role]
    assert (publisher.folder / "metadata" / "1.root.json").exists()
    assert publisher.read("2.root.json")["roles"][role]["keyids"] == [after[role]]
    assert before[role] not in publisher.read("2.root.json")["keys"]
    assert client.refresh() == ["1.0"]
    assert client.version("root") == 2
    publisher.publish("voice", "1.1", model_files(FIRST))
    assert publisher.resign()["timestamp"] == publisher.read("timestamp.json")["version"]
    assert client.refresh() == ["1.1", "1.0"]
    assert Client(ram / "new", publisher).refresh() == ["1.1", "1.0"]  # from the first root on


def test_the_root_is_signed_by_its_old_and_its_new_key(publisher: Publisher) -> None:
    old = load_public_key(publisher.keys, "root").keyid
    publisher.rotate("root")
    found = Metadata[Root].from_file(str(publisher.folder / "metadata" / "2.root.json"))
    assert set(found.signatures) == {old, load_public_key(publisher.keys, "root").keyid}


def test_the_replaced_key_is_kept_and_signs_no_more(publisher: Publisher, client: Client) -> None:
    old = load_signer(publisher.keys, "timestamp")
    publisher.rotate("timestamp")
    kept = load_signer(publisher.keys, "timestamp.until-root-1")
    assert kept.public_key.keyid == old.public_key.keyid
    client.refresh()
    path = publisher.folder / "metadata" / "timestamp.json"
    thief = Metadata[Timestamp].from_file(str(path))
    thief.signed.version = 99
    thief.sign(old)
    path.chmod(0o600)
    path.write_bytes(thief.to_bytes())
    with pytest.raises(TrustError, match="not signed"):
        client.refresh()


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_lost_key_is_replaced(role: str, publisher: Publisher, client: Client) -> None:
    (publisher.keys / f"{role}.pem").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        publisher.publish("voice", "1.1", model_files(FIRST))
    publisher.rotate(role)
    publisher.publish("voice", "1.1", model_files(FIRST))
    assert client.refresh() == ["1.1", "1.0"]


def test_without_the_root_key_nothing_is_replaced_and_nothing_is_left_behind(publisher: Publisher) -> None:
    (publisher.keys / "root.pem").unlink()
    before = sorted(path.name for path in publisher.keys.iterdir())
    for role in ROLES:
        with pytest.raises(ConfigError, match=r"root\.pem cannot be read"):
            publisher.rotate(role)
    assert sorted(path.name for path in publisher.keys.iterdir()) == before


@pytest.mark.parametrize(
    ("raised", "rotated"),
    [("timestamp", ["timestamp"]), ("snapshot", ["snapshot", "timestamp"]), ("targets", ["targets", "snapshot"])],
)
def test_clients_recover_from_a_thief_who_raised_the_version(
    raised: str, rotated: list[str], publisher: Publisher, client: Client, made: Path
) -> None:
    """Fast-forward: the thief's clients would refuse every honest version, were it not for the new keys."""
    for kind in (Targets, Snapshot, Timestamp):
        signed_up(publisher, kind, raised)
    client.refresh()
    assert client.version(raised) > 10**6
    honest = made / "repo" / "metadata"  # the copy that the publisher restores
    shutil.rmtree(publisher.folder / "metadata")
    shutil.copytree(honest, publisher.folder / "metadata")
    with pytest.raises(TrustError):
        client.refresh()
    for role in rotated:
        publisher.rotate(role)
    assert client.refresh() == ["1.0"]
    assert client.version(raised) < 10


def signed_up(publisher: Publisher, kind: type[Targets | Snapshot | Timestamp], raised: str) -> None:
    """The thief's metadata: what is `raised` has a huge version; what names it follows."""
    folder, role = publisher.folder / "metadata", kind.type
    order = ["targets", "snapshot", "timestamp"]
    if order.index(role) < order.index(raised):
        return
    name = "timestamp.json" if role == "timestamp" else f"1.{role}.json"
    metadata = Metadata.from_file(str(folder / name))
    signed = metadata.signed
    signed.version = 2**30 if role == raised else 2
    if isinstance(signed, Snapshot) and raised == "targets":
        signed.meta["targets.json"].version, signed.meta["targets.json"].hashes = 2**30, None
        signed.meta["targets.json"].length = None
    if isinstance(signed, Timestamp) and raised != "timestamp":
        signed.snapshot_meta.version = 2**30 if raised == "snapshot" else 2
        signed.snapshot_meta.hashes = signed.snapshot_meta.length = None
    metadata.sign(load_signer(publisher.keys, role))
    file = folder / ("timestamp.json" if role == "timestamp" else f"{signed.version}.{role}.json")
    file.unlink(missing_ok=True)
    file.write_bytes(metadata.to_bytes())


def test_a_stolen_targets_key_is_worth_nothing_after_its_rotation(publisher: Publisher, client: Client) -> None:
    old = load_signer(publisher.keys, "targets")
    publisher.rotate("targets")
    client.refresh()
    targets = Metadata[Targets].from_file(str(publisher.folder / "metadata" / "2.targets.json"))
    targets.signed.version = 3
    targets.signed.targets.clear()
    targets.sign(old)
    snapshot = Metadata[Snapshot].from_file(str(publisher.folder / "metadata" / "2.snapshot.json"))
    timestamp = Metadata[Timestamp].from_file(str(publisher.folder / "metadata" / "timestamp.json"))
    snapshot.signed.version, timestamp.signed.version = 3, 3
    snapshot.signed.meta["targets.json"] = type(snapshot.signed.meta["targets.json"])(3)
    timestamp.signed.snapshot_meta = type(timestamp.signed.snapshot_meta)(3)
    for metadata, role in ((snapshot, "snapshot"), (timestamp, "timestamp")):
        metadata.sign(load_signer(publisher.keys, role))  # type: ignore[attr-defined]
    for name, data in (("3.targets", targets), ("3.snapshot", snapshot), ("timestamp", timestamp)):
        path = publisher.folder / "metadata" / f"{name}.json"
        path.unlink(missing_ok=True)
        path.write_bytes(data.to_bytes())  # type: ignore[attr-defined]
    with pytest.raises(TrustError) as caught:
        client.refresh()
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == ("targets", "signature")


def test_a_machine_off_for_two_years_follows_every_rotation(publisher: Publisher, client: Client) -> None:
    for number in range(8):
        publisher.rotate(ROLES[number % 4])
    later = NOW + timedelta(days=730)
    publisher.resign(later)
    client.now = later
    assert client.refresh() == ["1.0"]
    assert client.version("root") == 10  # the resigning found that the root had expired


def sweep(publisher: Publisher, ram: Path, role: str, *, is_lost: bool, step: int) -> int:
    """Kill a rotation at every `step`-th operation. Clients are served at each moment, and running it again ends it."""
    at = 1
    while True:
        shutil.rmtree(ram / "try", ignore_errors=True)
        shutil.copytree(publisher.folder.parent, ram / "try")
        one = Publisher(ram / "try")
        client = Client(ram / "try" / "trusted", one)
        if is_lost:
            (one.keys / f"{role}.pem").unlink()
        disk = FaultyDisk(at=at)
        try:
            one.rotate(role, disk=disk)
        except Stopped:
            disk.release()
        if not is_lost:
            assert client.refresh() == ["1.0"]
            assert Client(ram / "try" / "fresh", one).refresh() == ["1.0"]
        names = {path.name for path in one.keys.iterdir()}
        if f"{role}.next.pem" in names or not disk.is_reached or is_lost:
            one.rotate(role)
        else:  # killed before there was a key, or after all was done
            one.resign()
        assert client.refresh() == ["1.0"]
        one.publish("voice", "1.1", model_files(FIRST))
        assert client.refresh() == ["1.1", "1.0"]
        assert not (one.keys / f"{role}.next.pem").exists()
        if not disk.is_reached:
            return at
        at += step


@pytest.mark.parametrize("role", ["root", "snapshot"])
def test_a_rotation_killed_anywhere_can_be_finished(role: str, publisher: Publisher, ram: Path) -> None:
    assert sweep(publisher, ram, role, is_lost=False, step=9) > 9


@pytest.mark.real
@pytest.mark.parametrize(
    ("role", "is_lost"),
    [(role, is_lost) for role in ROLES for is_lost in (False, True) if (role, is_lost) != ("root", True)],
)
def test_a_rotation_killed_at_every_operation_can_be_finished(
    role: str, is_lost: bool, publisher: Publisher, ram: Path
) -> None:
    assert sweep(publisher, ram, role, is_lost=is_lost, step=1) > 20


@pytest.mark.real
@pytest.mark.parametrize("role", ROLES)
def test_whatever_a_power_cut_leaves_of_a_rotation_can_be_finished(role: str, publisher: Publisher, ram: Path) -> None:
    disk = PowerCutDisk(publisher.folder.parent)
    publisher.rotate(role, disk=disk)
    for number, cut in enumerate(disk.cuts(seeds=1)):
        cut.restore(ram / "found")
        one = Publisher(ram / "found")
        client = Client(ram / f"client{number}", one)
        if (one.keys / f"{role}.next.pem").exists():
            assert not cut.is_after_all
            one.rotate(role)
        one.publish("voice", "1.1", model_files(FIRST))
        assert client.refresh() == ["1.1", "1.0"], cut.name
        assert not cut.is_after_all or client.version("root") == 2
        shutil.rmtree(ram / "found")


def test_an_interrupted_rotation_says_how_to_finish_it(publisher: Publisher) -> None:
    for at in range(1, 60):
        disk = FaultyDisk(at=at)
        try:
            publisher.rotate("snapshot", disk=disk)
        except Stopped:
            disk.release()
        try:
            publisher.resign()
        except KenshoError as error:
            assert isinstance(error, ConfigError)
            assert "--rotate snapshot" in error.advice
            break
    else:
        pytest.fail("no interruption was seen")
    publisher.rotate("snapshot")
    publisher.resign()
