"""The scrub finds what no stat shows, within its period, remembers where it was, and vouches only for what it read."""

import os
import threading
from pathlib import Path

import pytest

from kensho.base.errors import StorageError
from kensho.base.events import CheckFinished, ChunkCorrupt
from kensho.delivery.checker import Damage, verify
from kensho.delivery.disk import RealDisk
from kensho.delivery.installed import Record
from kensho.delivery.repair import Repairer
from kensho.delivery.scrub import Scrubber, lower_priority
from kensho.delivery.store import Store
from kensho.testing.client import FIRST, Client, model_files
from kensho.testing.disk import FaultyDisk
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

PERIOD_S = 7 * 86400.0


@pytest.fixture
def installed(client: Client, world: SimulatedRepository) -> Client:
    client.pull(world.source())
    client.events.clear()
    return client


def _scrubber(client: Client) -> Scrubber:
    return Scrubber(client.store, clock=client.clock, emit=client.events.append, period_s=PERIOD_S)


def _scrub(client: Client, *, for_s: float = PERIOD_S, scrubber: Scrubber | None = None) -> list[Damage]:
    scrubber, end, found = scrubber or _scrubber(client), client.clock.wall_s() + for_s, []
    while client.clock.wall_s() < end:
        step = scrubber.step()
        found += step.damaged
        client.clock.sleep(max(step.wait_s, 1.0))
    return found


def _rot(client: Client, path: Path, offset: int) -> None:
    """One byte is another, and the kernel's stat knows nothing of it: the verification record still vouches."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for record in client.store.state.records().values():
        if record.inode == before.st_ino:
            client.store.state.put_records([Record.of(record.digest, path.stat(), record.verified_at)])


def _weights(client: Client) -> Path:
    return client.store.model("voice").folder / "model.safetensors"


def test_a_good_store_is_read_whole_in_each_pass_and_the_check_is_recorded(installed: Client) -> None:
    assert _scrub(installed) == []
    passes = installed.of(CheckFinished)
    assert [event.kind for event in passes] == ["scrub"] * len(passes)
    assert len(passes) >= 2
    documents = sum(
        installed.store.blob_path(digest).stat().st_size
        for digest in {installed.store.model("voice").manifest, *(f.chunk_list for f in _files(installed))}
    )
    assert passes[0].bytes_hashed == sum(map(len, model_files(FIRST).values())) + documents
    at, damaged = installed.store.state.checks()["scrub"]
    assert damaged == 0
    assert at >= installed.clock.wall_s() - PERIOD_S / 2


def _files(client: Client) -> tuple:
    return client.store.model("voice").files


def test_rot_that_no_stat_shows_is_found_once_within_the_period_and_every_other_check_knows(installed: Client) -> None:
    _scrub(installed, for_s=PERIOD_S / 3)
    installed.events.clear()
    _rot(installed, _weights(installed), 50_000)
    assert verify(installed.store, is_full=False, clock=installed.clock, emit=lambda event: None).damaged == ()
    found = _scrub(installed)
    assert {(damage.path, len(damage.chunks)) for damage in found} == {("model.safetensors", 1)}
    assert {(event.path, event.chunk) for event in installed.of(ChunkCorrupt)} == {
        ("model.safetensors", found[0].chunks[0])
    }
    [quick] = verify(installed.store, is_full=False, clock=installed.clock, emit=lambda event: None).damaged
    assert (quick.digest, quick.chunks) == (found[0].digest, found[0].chunks)
    assert installed.store.state.checks()["scrub"][1] >= 1


def test_what_a_scrub_finds_can_be_mended_as_it_is(installed: Client, world: SimulatedRepository) -> None:
    _rot(installed, _weights(installed), 50_000)
    inode = _weights(installed).stat().st_ino
    found = _scrub(installed, for_s=PERIOD_S / 2)
    with _weights(installed).open("rb") as reader:
        before = reader.read()
        repairer = Repairer(
            installed.store, [world.source()], emit=installed.events.append, clock=installed.clock, rng=lambda: 0.5
        )
        assert repairer.repair(found).unrepaired == ()
        reader.seek(0)
        assert reader.read() == before, "never patched in place under a reader"
    assert _weights(installed).stat().st_ino != inode
    assert installed.content() == model_files(FIRST)
    assert _scrub(installed) == []


def test_a_scrub_goes_on_after_a_restart(installed: Client, world: SimulatedRepository) -> None:
    _scrub(installed, for_s=PERIOD_S * 0.45 / 2)
    hashed = sum(event.bytes_hashed for event in installed.of(CheckFinished))
    assert hashed == 0, "half a pass"
    installed.store.close()
    again = Client(installed.root, world)
    again.clock.sleep(PERIOD_S * 0.45)
    step = _scrubber(again).step()
    total = sum(map(len, model_files(FIRST).values()))
    assert 0 < step.bytes_hashed < 0.8 * total, "what was done is not done again"
    _scrub(again, for_s=PERIOD_S * 0.45)
    assert again.of(CheckFinished)[0].bytes_hashed > total
    again.store.close()


def test_a_whole_good_reading_renews_the_record_so_that_starts_hash_nothing(installed: Client) -> None:
    before = {record.inode: record.verified_at for record in installed.store.state.records().values()}
    _scrub(installed, for_s=6 * PERIOD_S)
    after = {record.inode: record.verified_at for record in installed.store.state.records().values()}
    inode = _weights(installed).stat().st_ino
    assert after[inode] > before[inode] + 4 * PERIOD_S
    report = verify(installed.store, is_full=False, clock=installed.clock, emit=lambda event: None)
    assert (report.damaged, report.bytes_hashed) == ((), 0)


def test_a_file_touched_during_the_pass_gets_no_record(installed: Client) -> None:
    scrubber, path = _scrubber(installed), _weights(installed)
    while path.name not in {name.rsplit("/", 1)[-1] for name in scrubber._begun}:
        installed.clock.sleep(max(scrubber.step().wait_s, 1.0))
    installed.store.state.finish_scrub(good=[], bad=[(path.stat().st_dev, path.stat().st_ino)])
    os.utime(path)
    _scrub(installed, for_s=PERIOD_S / 3, scrubber=scrubber)
    assert path.stat().st_ino not in {record.inode for record in installed.store.state.records().values()}


DAMAGE = {
    "cut": lambda path: (path.chmod(0o644), os.truncate(path, 40_000)),
    "longer": lambda path: (path.chmod(0o644), os.truncate(path, path.stat().st_size + 1)),
    "gone": lambda path: path.unlink(),
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_found(installed: Client, kind: str) -> None:
    DAMAGE[kind](_weights(installed))
    assert {damage.path for damage in _scrub(installed, for_s=PERIOD_S / 2)} == {"model.safetensors"}


def test_damaged_documents_are_found_and_files_without_chunk_list_are_read_as_a_whole(installed: Client) -> None:
    [file] = [file for file in _files(installed) if file.path == "model.safetensors"]
    path = installed.store.blob_path(file.chunk_list)
    path.chmod(0o644)
    path.write_bytes(b"no list")
    _rot(installed, _weights(installed), 50_000)
    found = {(damage.path, damage.is_document) for damage in _scrub(installed, for_s=PERIOD_S / 2)}
    assert found == {("model.safetensors.chunks", True), ("model.safetensors", False)}


def test_a_sector_that_cannot_be_read_is_damage(installed: Client) -> None:
    installed.store.disk = _BadSector(_weights(installed).stat().st_ino)
    assert [(d.path, len(d.chunks)) for d in _scrub(installed, for_s=PERIOD_S / 2)] == [("model.safetensors", 1)]


class _BadSector(FaultyDisk):
    def __init__(self, inode: int) -> None:
        super().__init__()
        self._inode = inode

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        if os.fstat(fd).st_ino == self._inode and offset <= 50_000 < offset + len(buffer):
            raise OSError(5, "Input/output error")
        return super().read_into(fd, buffer, offset)


def test_the_thread_of_a_scrub_yields_to_all_others_and_no_other_thread_does() -> None:
    found: list[int] = []

    def run() -> None:
        lower_priority()
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    before = os.getpriority(os.PRIO_PROCESS, 0)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [19]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before


def test_what_another_process_removes_meanwhile_is_not_damage(installed: Client) -> None:
    installed.store.disk = _Removing(installed)
    assert _scrub(installed, for_s=PERIOD_S / 2) == []
    assert installed.of(ChunkCorrupt) == []


class _Removing(FaultyDisk):
    """Another process removes the model when the first file is about to be opened."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def open_read(self, path: Path) -> int:
        if path.suffix == ".safetensors" and path.exists():
            other = Store.open(self._client.root, disk=RealDisk())
            other.state.remove_release("voice", "1.0")
            other.versions.remove(other.versions.path("voice", "1.0"))
            other.close()
        return super().open_read(path)


def test_a_store_that_goes_away_in_the_middle_is_not_damaged(installed: Client) -> None:
    installed.store.disk = _Unmounting(installed.root)
    with pytest.raises(StorageError):
        _scrub(installed, for_s=PERIOD_S / 2)
    installed.root.with_name("away").rename(installed.root)
    assert installed.of(ChunkCorrupt) == []
    assert _scrub(installed, for_s=PERIOD_S / 2) == []


class _Unmounting(FaultyDisk):
    """The store is gone when the first file is about to be opened."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self._root, self._is_done = root, False

    def open_read(self, path: Path) -> int:
        if path.suffix == ".safetensors" and not self._is_done:
            self._is_done = True
            self._root.rename(self._root.with_name("away"))
        return super().open_read(path)


def test_a_new_version_is_scrubbed_from_the_next_pass_on(installed: Client, grown: SimulatedRepository) -> None:
    scrubber = _scrubber(installed)
    _scrub(installed, for_s=PERIOD_S / 5, scrubber=scrubber)
    installed.pull(grown.source())
    _rot(installed, _weights(installed), 50_000)
    assert {damage.version for damage in _scrub(installed, scrubber=scrubber)} == {"2.0"}
