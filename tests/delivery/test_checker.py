"""Every kind of damage is found by the grade that can see it, and no grade touches the network or the files."""

import os
import socket
from pathlib import Path

import pytest

from kensho.base.errors import NotInstalled, StorageError
from kensho.base.events import CheckFinished, CheckNotKept, ChunkCorrupt
from kensho.delivery.checker import Damage, VerifyReport, check_model, look, verify
from kensho.delivery.installed import EXPIRY_S
from kensho.testing.client import FIRST, Client, model_files
from kensho.testing.disk import FaultyDisk
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

SIZE = sum(map(len, model_files(FIRST).values()))


@pytest.fixture
def installed(client: Client, world: SimulatedRepository) -> Client:
    client.pull(world.source())
    client.events.clear()
    return client


def _verify(client: Client, *, is_full: bool = False) -> VerifyReport:
    return verify(client.store, is_full=is_full, clock=client.clock, emit=client.events.append)


def _path(client: Client, name: str = "model.safetensors") -> Path:
    return client.store.model("voice").folder / name


def spoil(path: Path, offset: int, data: bytes = b"\0", *, is_hidden: bool = False) -> None:
    """Overwrite bytes in place, as a bad disk or program does; hidden: the kernel's stat stays as it was."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    if is_hidden:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_untouched_store_is_good_and_quick_reads_nothing(installed: Client) -> None:
    report = _verify(installed)
    assert (report.kind, report.files, report.damaged, report.bytes_hashed) == ("quick", 3, (), 0)
    assert report.chunks >= 7
    full = _verify(installed, is_full=True)
    assert (full.kind, full.damaged, full.bytes_hashed, full.chunks) == ("full", (), SIZE, report.chunks)
    kinds = [(event.kind, event.bytes_hashed) for event in installed.of(CheckFinished)]
    assert kinds == [("quick", 0), ("full", SIZE)]
    assert set(installed.store.state.checks()) == {"load", "quick", "full"}, "the pull was a check, too"


def test_one_changed_byte_is_found_by_every_grade_and_named(installed: Client) -> None:
    spoil(_path(installed), 50_000)
    for check in (
        lambda: _verify(installed),
        lambda: check_model(installed.store, "voice", clock=installed.clock, emit=installed.events.append),
        lambda: _verify(installed, is_full=True),
        lambda: _verify(installed),
    ):
        [damage] = check().damaged
        assert (damage.path, len(damage.chunks)) == ("model.safetensors", 1)
    assert {(event.path, event.chunk) for event in installed.of(ChunkCorrupt)} == {(damage.path, damage.chunks[0])}


def test_damage_whose_mtime_was_put_back_is_found_by_quick(installed: Client) -> None:
    spoil(_path(installed), 50_000, is_hidden=True)
    assert len(_verify(installed).damaged) == 1


def test_damage_that_no_stat_shows_is_found_by_full_and_then_remembered(installed: Client) -> None:
    spoil(_path(installed), 50_000)
    [record] = [r for r in installed.store.state.records().values() if r.digest == _model_file(installed).digest]
    found = _path(installed).stat()
    lying = type(record).of(record.digest, found, record.verified_at)
    installed.store.state.put_records([lying])  # as if the sector rotted below the file system
    assert _verify(installed).damaged == ()
    assert len(_verify(installed, is_full=True).damaged) == 1
    assert len(_verify(installed).damaged) == 1


def test_where_the_disk_takes_no_note_of_it_the_check_holds_all_the_same(installed: Client) -> None:
    os.utime(_path(installed))  # what is known of it is in doubt
    installed.store.state._db.execute("PRAGMA query_only=1")
    for _ in range(2):
        report = check_model(installed.store, "voice", clock=installed.clock, emit=installed.events.append)
        assert (report.damaged, report.bytes_hashed > 0) == ((), True)
    assert [event.kind for event in installed.of(CheckNotKept)] == ["load", "load"]
    spoil(_path(installed), 50_000)
    assert len(_verify(installed).damaged) == 1
    with pytest.raises(StorageError):  # it would be forgotten, and believed the next time
        _verify(installed, is_full=True)


def _model_file(client: Client) -> Damage:
    [file] = [file for file in client.store.model("voice").files if file.path == "model.safetensors"]
    return Damage("voice", "1.0", file.path, file.digest, ())


DAMAGE = {
    "zeros": lambda path: spoil(path, 30_000, bytes(4096)),
    "cut": lambda path: (path.chmod(0o644), os.truncate(path, 40_000)),
    "emptied": lambda path: (path.chmod(0o644), os.truncate(path, 0)),
    "longer": lambda path: spoil(path, path.stat().st_size, b"more"),
    "gone": lambda path: path.unlink(),
    "replaced": lambda path: (path.unlink(), path.write_bytes(b"other")),
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("place", ["version", "blob"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_found_under_either_name(installed: Client, kind: str, place: str) -> None:
    path = _path(installed)
    if place == "blob":
        path = installed.store.blob_path(_model_file(installed).digest)
    DAMAGE[kind](path)
    for is_full in (False, True):
        assert [damage.path for damage in _verify(installed, is_full=is_full).damaged] == ["model.safetensors"]


def test_a_whole_version_folder_that_is_gone_is_damage_of_each_file(installed: Client) -> None:
    installed.store.versions.remove(installed.store.model("voice").folder)
    assert len(_verify(installed).damaged) == 3


def test_two_chunks_that_were_swapped_are_both_named(installed: Client) -> None:
    path = _path(installed)
    data = path.read_bytes()
    start = data.index(FIRST[0])
    spoil(path, start, FIRST[1] + FIRST[0])
    [damage] = _verify(installed).damaged
    assert len(damage.chunks) == 2


def test_a_damaged_document_is_named_and_files_are_still_checked(installed: Client) -> None:
    model = installed.store.model("voice")
    [file] = [file for file in model.files if file.path == "model.safetensors"]
    for digest, name in ((model.manifest, "manifest.json"), (file.chunk_list, "model.safetensors.chunks")):
        spoil(installed.store.blob_path(digest), 10)
        assert name in {damage.path for damage in _verify(installed).damaged if damage.is_document}
    assert not any(not damage.is_document for damage in _verify(installed, is_full=True).damaged)
    spoil(_path(installed), 50_000)
    assert "model.safetensors" in {damage.path for damage in _verify(installed).damaged}


def test_a_sector_that_cannot_be_read_is_a_damaged_chunk(ram: Path, world: SimulatedRepository) -> None:
    client = Client(ram / "eio", world)
    client.pull(world.source())
    client.store.disk = _BadSector(_path(client).stat().st_ino)
    [damage] = _verify(client, is_full=True).damaged
    assert (damage.path, len(damage.chunks)) == ("model.safetensors", 1)


class _BadSector(FaultyDisk):
    """Reading byte 50 000 of one inode is an I/O error, each time."""

    def __init__(self, inode: int) -> None:
        super().__init__()
        self._inode = inode

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        if os.fstat(fd).st_ino == self._inode and offset <= 50_000 < offset + len(buffer):
            raise OSError(5, "Input/output error")
        return super().read_into(fd, buffer, offset)


def test_a_record_expires_and_the_file_is_hashed_again(installed: Client) -> None:
    installed.clock.sleep(EXPIRY_S + 1)
    assert _verify(installed).bytes_hashed == SIZE
    assert _verify(installed).bytes_hashed == 0


def test_load_looks_at_the_current_version_of_one_model_only(installed: Client, grown: SimulatedRepository) -> None:
    installed.pull(grown.source(), models=["voice", "other"])
    spoil(installed.store.versions.path("voice", "1.0") / "model.safetensors", 50_000)
    report = check_model(installed.store, "voice", clock=installed.clock, emit=installed.events.append)
    assert (report.kind, report.files, report.damaged) == ("load", 3, ())
    assert [(damage.version, damage.path) for damage in _verify(installed).damaged] == [("1.0", "model.safetensors")]
    with pytest.raises(NotInstalled):
        check_model(installed.store, "none", clock=installed.clock, emit=installed.events.append)


def test_checking_opens_no_connection_and_changes_no_file(installed: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    spoil(_path(installed), 50_000)
    before = {path: path.read_bytes() for path in (installed.root / "blobs").iterdir()}
    _verify(installed, is_full=True)
    assert {path: path.read_bytes() for path in (installed.root / "blobs").iterdir()} == before


def test_looking_leaves_no_trace_and_sees_what_quick_sees(installed: Client) -> None:
    def trace() -> object:
        return installed.store.state.records(), installed.store.state.checks(), list(installed.events)

    installed.clock.sleep(EXPIRY_S + 1)  # a record that is only old needs no hashing to look
    before = trace()
    installed.store.disk = _Unreadable(_path(installed).stat().st_ino)
    assert look(installed.store, clock=installed.clock) == ()
    assert trace() == before
    installed.store.disk = FaultyDisk()
    spoil(_path(installed), 50_000)
    seen = look(installed.store, clock=installed.clock)
    assert trace() == before
    assert seen == _verify(installed).damaged


class _Unreadable(_BadSector):
    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        assert os.fstat(fd).st_ino != self._inode, "it was hashed"
        return super(_BadSector, self).read_into(fd, buffer, offset)
