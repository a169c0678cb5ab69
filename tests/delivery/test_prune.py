"""kensho.delivery.prune: old releases go, and no client in the middle of a pull misses a file."""

import shutil
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from kensho.base.errors import ConfigError, StorageError
from kensho.delivery.folder_source import FolderSource
from kensho.delivery.prune import MARKS, PruneReport, prune
from kensho.testing.client import FIRST, NOW, Client, model_files, weights
from kensho.testing.disk import FaultyDisk, Stopped
from kensho.testing.power_cut import PowerCutDisk
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

FILES = {f"{number}.0": model_files([*weights(number)[:3], *FIRST[3:]]) for number in (1, 2, 3)}
"""Three of six tensors are new in each version; the others lie in the first version's pack."""
LATER = NOW + timedelta(days=31)


class Publisher(SimulatedRepository):
    """Prunes, too."""

    def prune(self, keep: int = 1, now: datetime = NOW, *, is_keyless: bool = False, **more: object) -> PruneReport:
        return prune(self.folder, None if is_keyless else self._keys, keep=keep, now=now, **more)  # type: ignore[arg-type]

    @property
    def files(self) -> set[str]:
        return {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()}

    @property
    def size_bytes(self) -> int:
        return sum((self.folder / name).stat().st_size for name in self.files if not name.startswith("."))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("made")
    publisher = Publisher(scratch, now=NOW)
    for version, files in FILES.items():
        publisher.publish("voice", version, files)
    publisher.publish("other", "1.0", model_files(weights(9)[:1]))
    return scratch


@pytest.fixture
def publisher(made: Path, ram: Path) -> Publisher:
    shutil.copytree(made, ram / "publisher")
    return Publisher(ram / "publisher", now=NOW)


def pulled(publisher: Publisher, folder: Path, version: str = "3.0") -> None:
    """A new machine gets the newest version, whole."""
    client = Client(folder, publisher)
    report = client.pull(FolderSource(publisher.folder))
    assert report.first_error is None
    assert client.store.model("voice").version == version
    assert client.content() == FILES[version]
    client.store.close()


class Interrupting(FolderSource):
    """Does something in the middle of a pull: when the first bytes of a pack are asked for."""

    def __init__(self, folder: Path, act: Callable[[], object]) -> None:
        super().__init__(folder)
        self._act: Callable[[], object] | None = act

    def read_range(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        act, self._act = self._act, None
        if act:
            act()
        return super().read_range(path, offset, length)


def test_what_goes_is_named_no_more_at_once_and_removed_when_nobody_can_want_it(
    publisher: Publisher, ram: Path
) -> None:
    before, size = publisher.files, publisher.size_bytes
    report = publisher.prune()
    assert [ref.version for ref in report.releases] == ["2.0", "1.0"]
    assert (report.bytes_freed, report.waiting_until) == (0, LATER)
    assert report.bytes_waiting > 60_000
    assert before <= publisher.files
    pulled(publisher, ram / "one")
    again = publisher.prune(now=NOW + timedelta(days=30))
    assert (again.releases, again.bytes_freed, again.bytes_waiting) == ((), 0, report.bytes_waiting)
    last = publisher.prune(now=LATER)
    assert (last.bytes_freed, last.bytes_waiting, last.waiting_until) == (report.bytes_waiting, 0, None)
    assert publisher.size_bytes < size - 60_000
    assert not [name for name in publisher.files if "/1.0/" in name and "voice" in name]
    assert not (publisher.folder / "targets" / "voice" / "1.0").exists()
    assert "metadata/1.root.json" in publisher.files
    pulled(publisher, ram / "two")
    assert publisher.prune(now=LATER).bytes_freed == 0


def test_a_pull_under_way_ends_well(publisher: Publisher, made: Path, ram: Path) -> None:
    """The client has chosen 1.0, which was the newest then; 2.0 and 3.0 come, and 1.0 goes, while it fetches."""
    one = Publisher(ram / "one", now=NOW)
    one.publish("voice", "1.0", FILES["1.0"])

    def meanwhile() -> None:
        one.publish("voice", "2.0", FILES["2.0"])
        one.publish("voice", "3.0", FILES["3.0"])
        one.prune()
        one.prune(now=NOW + timedelta(days=30))

    client = Client(ram / "client", one)
    report = client.pull(Interrupting(one.folder, meanwhile))
    assert report.first_error is None
    assert client.content() == FILES["1.0"]
    one.prune(now=LATER)
    client.pull(FolderSource(one.folder))
    assert client.content() == FILES["3.0"]
    client.store.close()


def test_packs_that_a_kept_release_shares_stay(publisher: Publisher, ram: Path) -> None:
    publisher.prune(grace_days=0)
    pulled(publisher, ram / "one")  # three of its tensors lie in the pack of 1.0
    assert publisher.prune(grace_days=0).bytes_freed == 0


def test_every_model_keeps_its_newest_releases(publisher: Publisher) -> None:
    assert publisher.prune(keep=3).releases == ()
    assert [ref.version for ref in publisher.prune(keep=2).releases] == ["1.0"]
    assert publisher.manifest("other", "1.0").version == "1.0"


def test_machines_outside_a_roll_out_keep_what_they_need(publisher: Publisher) -> None:
    for version, percent in (("4.0", 50), ("5.0", 0)):
        publisher.publish("voice", version, FILES["1.0"], rollout_percent=percent)
    assert [ref.version for ref in publisher.prune(keep=1).releases] == ["2.0", "1.0"]
    publisher.publish("voice", "6.0", FILES["1.0"])
    assert [ref.version for ref in publisher.prune(keep=1).releases] == ["5.0", "4.0", "3.0"]


def test_publishing_goes_on_after_pruning(publisher: Publisher, ram: Path) -> None:
    publisher.prune(grace_days=0)
    publisher.publish("voice", "4.0", FILES["2.0"])
    FILES["4.0"] = FILES["2.0"]
    pulled(publisher, ram / "one", "4.0")
    del FILES["4.0"]


def test_the_old_mark_of_what_was_wanted_again_is_forgotten(publisher: Publisher) -> None:
    once, other, third = (model_files(weights(number)) for number in (20, 21, 22))
    before = publisher.files
    publisher.publish("solo", "1.0", once)
    (pack,) = publisher.files - before - {name for name in publisher.files if not name.startswith("packs/")}
    publisher.publish("solo", "2.0", other)
    publisher.prune(grace_days=1)  # the pack may go tomorrow
    publisher.publish("solo", "3.0", once)  # makes the very same pack again
    publisher.publish("solo", "4.0", third)
    publisher.prune(now=NOW + timedelta(days=10))
    assert pack in publisher.files  # a pull of 3.0 may be under way
    publisher.prune(now=NOW + timedelta(days=42))
    assert pack not in publisher.files


def test_without_keys_packs_go_and_the_metadata_stays(publisher: Publisher, ram: Path) -> None:
    metadata = {name for name in publisher.files if name.startswith("metadata/")}
    before = (publisher.folder / "metadata" / "timestamp.json").read_bytes()
    assert publisher.prune(is_keyless=True).bytes_freed == 0
    report = publisher.prune(is_keyless=True, now=LATER)
    assert report.bytes_freed > 20_000
    assert (publisher.folder / "metadata" / "timestamp.json").read_bytes() == before
    assert metadata - {name for name in publisher.files if name.startswith("metadata/")} == {
        f"metadata/{number}.{role}.json" for number in (1, 2, 3) for role in ("snapshot", "targets")
    }
    pulled(publisher, ram / "one")
    publisher.publish("voice", "4.0", FILES["2.0"])


def test_only_what_a_publisher_names_so_is_ever_removed(publisher: Publisher, ram: Path) -> None:
    (ram / "elsewhere").write_bytes(b"precious")
    kept = ["README", "packs/notes.txt", "targets/voice/own.txt", "metadata/old.json", ".well-known/x"]
    for name in kept:
        (publisher.folder / name).parent.mkdir(exist_ok=True)
        (publisher.folder / name).write_bytes(b"mine")
    (publisher.folder / "packs" / f"{'a' * 64}.pack").symlink_to(ram / "elsewhere")
    (publisher.folder / "packs" / f"{'b' * 64}.pack").write_bytes(b"of a killed publisher")
    (publisher.folder / MARKS).write_text('{"format":1,"waiting":{"../../elsewhere":1,"README":1}}')
    publisher.prune(grace_days=0)
    assert (ram / "elsewhere").read_bytes() == b"precious"
    assert set(kept) < publisher.files
    assert f"packs/{'b' * 64}.pack" not in publisher.files


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"[]", b'{"format":1,"waiting":[]}', b'{"format":1,"waiting":{"a":"b"}}']
)
def test_damaged_marks_only_delay(damage: bytes, publisher: Publisher) -> None:
    publisher.prune()
    (publisher.folder / MARKS).chmod(0o600)
    (publisher.folder / MARKS).write_bytes(damage)
    assert publisher.prune(now=NOW + timedelta(days=1)).bytes_freed == 0
    assert publisher.prune(now=LATER).bytes_freed > 0


@pytest.mark.parametrize("terms", [{"keep": 0}, {"keep": 1, "grace_days": -1}, {"keep": 1, "grace_days": 1e9}])
def test_odd_terms_are_refused(terms: dict[str, float], publisher: Publisher, ram: Path) -> None:
    with pytest.raises(ConfigError):
        publisher.prune(**terms)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not a repository"):
        prune(ram / "absent", None, keep=1, now=NOW)


def sweep(publisher: Publisher, ram: Path, step: int) -> int:
    """Kill both steps at every `step`-th operation: the newest release is served at each moment."""
    at = 1
    while True:
        shutil.rmtree(ram / "try", ignore_errors=True)
        shutil.copytree(publisher.folder.parent, ram / "try" / "publisher")
        one = Publisher(ram / "try" / "publisher", now=NOW)
        disk = FaultyDisk(at=at)
        try:
            one.prune(disk=disk)
            one.prune(now=LATER, disk=disk)
        except Stopped:
            disk.release()
        pulled(one, ram / "try" / "client")
        far = NOW + timedelta(days=80)
        one.prune(now=far)
        one.prune(now=far + timedelta(days=31))
        assert not [name for name in one.files if "voice/1.0" in name]
        one.publish("voice", "4.0", FILES["2.0"])
        if not disk.is_reached:
            return at
        at += step


def test_a_killed_prune_leaves_a_whole_repository(publisher: Publisher, ram: Path) -> None:
    assert sweep(publisher, ram, 11) > 20


@pytest.mark.real
def test_a_prune_killed_at_every_operation_leaves_a_whole_repository(publisher: Publisher, ram: Path) -> None:
    assert sweep(publisher, ram, 1) > 25


@pytest.mark.real
def test_whatever_a_power_cut_leaves_of_a_prune_is_a_whole_repository(publisher: Publisher, ram: Path) -> None:
    disk = PowerCutDisk(publisher.folder.parent)
    publisher.prune(disk=disk)
    publisher.prune(now=LATER, disk=disk)
    for number, cut in enumerate(disk.cuts(seeds=1)):
        cut.restore(ram / "found")
        one = Publisher(ram / "found", now=NOW)
        pulled(one, ram / f"client{number}")
        one.prune(grace_days=0)
        pulled(one, ram / f"again{number}")
        for name in (f"client{number}", f"again{number}", "found"):
            shutil.rmtree(ram / name)


def test_a_disk_that_refuses_is_said(publisher: Publisher) -> None:
    with pytest.raises(StorageError):
        publisher.prune(disk=FaultyDisk(at=3, fault=5))
