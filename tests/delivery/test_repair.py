"""Repair moves only the damaged chunks, from this disk first, never in place, and can be killed at every step."""

import errno
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kensho.base.errors import KenshoError, NetworkNotAllowed, NotEnoughSpace, StorageError
from kensho.base.events import ChunkRejected, ChunkRepaired
from kensho.delivery.checker import VerifyReport, check_model, verify
from kensho.delivery.inventory import chunks_of
from kensho.delivery.repair import Repairer, RepairReport
from kensho.delivery.sources import Source
from kensho.testing.client import FIRST, SECOND, Client, model_files
from kensho.testing.disk import FaultyDisk, Stopped
from kensho.testing.memory_source import Fault
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

NAME = "model.safetensors"
SWEEP = pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.real)])
"""At every operation, or, in the fast tests, at every 7th."""


@pytest.fixture
def installed(client: Client, world: SimulatedRepository) -> Client:
    client.pull(world.source())
    client.events.clear()
    return client


def _verify(client: Client, *, is_full: bool = False) -> VerifyReport:
    return verify(client.store, is_full=is_full, clock=client.clock, emit=client.events.append)


def _repair(client: Client, *sources: Source) -> RepairReport:
    return _mend(client, _verify(client), *sources)


def _mend(client: Client, report: VerifyReport, *sources: Source) -> RepairReport:
    repairer = Repairer(
        client.store, sources, emit=client.events.append, clock=client.clock, rng=lambda: 0.5, connections=1
    )
    return repairer.repair(report.damaged)


def _path(client: Client, name: str = NAME) -> Path:
    return client.store.model("voice").folder / name


def _spoil(path: Path, offset: int, data: bytes = b"\0") -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_one_flipped_byte_costs_exactly_its_chunk(installed: Client, world: SimulatedRepository) -> None:
    _spoil(_path(installed), 50_000)
    [damage] = _verify(installed).damaged
    [file] = [file for file in installed.store.model("voice").files if file.path == NAME]
    chunk = chunks_of(installed.store, file)[damage.chunks[0]]
    source = world.source()
    report = _repair(installed, source)
    assert (report.repaired_chunks, report.unrepaired, report.error) == (1, (), None)
    assert report.bytes_fetched == source.bytes_fetched == chunk.encoded_bytes
    assert source.requests == 1
    assert installed.content() == model_files(FIRST)
    assert _verify(installed, is_full=True).damaged == ()
    [event] = installed.of(ChunkRepaired)
    assert (event.path, event.chunk, event.size_bytes, event.source) == (
        NAME, damage.chunks[0], chunk.size_bytes, "memory",
    )  # fmt: skip
    assert installed.store.state.history(file.digest)[0].what == "repaired"


def test_what_the_check_hashed_is_read_twice_more_once_to_copy_and_once_to_verify_the_whole(
    installed: Client, world: SimulatedRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(_path(installed), 50_000)
    report = _verify(installed)
    size, read = _path(installed).stat().st_size, 0
    read_into = installed.store.disk.read_into

    def counted(fd: int, buffer: memoryview, offset: int) -> int:
        nonlocal read
        read += (count := read_into(fd, buffer, offset))
        return count

    monkeypatch.setattr(installed.store.disk, "read_into", counted)
    assert _mend(installed, report, world.source()).repaired_chunks == 1
    assert read < 2 * size + 10_000, "its chunk list and manifest are read too"


def test_who_has_the_damaged_file_open_keeps_it(installed: Client, world: SimulatedRepository) -> None:
    path = _path(installed)
    _spoil(path, 50_000)
    damaged = path.read_bytes()
    with path.open("rb") as reader:
        _repair(installed, world.source())
        assert reader.read() == damaged
    assert path.read_bytes() == model_files(FIRST)[NAME]
    assert path.stat().st_mode & 0o777 == 0o444


def test_bytes_of_another_version_mend_without_any_source(
    installed: Client, world: SimulatedRepository, grown: SimulatedRepository
) -> None:
    installed.pull(grown.source())
    data = _path(installed).read_bytes()
    _spoil(_path(installed), data.index(SECOND[4]) + 5)
    report = _repair(installed)
    assert (report.repaired_chunks, report.bytes_fetched, report.unrepaired) == (1, 0, ())
    assert installed.of(ChunkRepaired)[-1].source == f"versions/voice/1.0/{NAME}"
    assert installed.content() == model_files(SECOND)


def test_copies_that_turn_out_wrong_in_the_whole_file_come_from_elsewhere_in_the_same_run(
    installed: Client, world: SimulatedRepository, grown: SimulatedRepository
) -> None:
    """The check looked at the current version only: that the previous one and a chunk it left are rotten is news."""
    installed.pull(grown.source())
    path, previous = _path(installed), installed.store.versions.path("voice", "1.0") / NAME
    _spoil(path, path.read_bytes().index(SECOND[4]) + 5)
    found = check_model(installed.store, "voice", clock=installed.clock, emit=installed.events.append)
    _spoil(path, path.read_bytes().index(SECOND[5]) + 5)
    _spoil(previous, previous.read_bytes().index(SECOND[4]) + 5)
    source = grown.source()
    assert _mend(installed, found, source).unrepaired == ()
    assert installed.content() == model_files(SECOND)
    assert source.requests == 1, "the other place of one chunk, the network for the other"


def test_a_disk_that_gives_back_other_bytes_than_were_written_is_told_and_nothing_gets_a_name(
    installed: Client, world: SimulatedRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    _spoil(_path(installed), 50_000)
    report, disk = _verify(installed), installed.store.disk
    write = disk.write
    monkeypatch.setattr(disk, "write", lambda fd, data, offset: write(fd, bytes(len(data)), offset))
    with pytest.raises(StorageError, match="other bytes"):
        _mend(installed, report, world.source())
    assert _verify(installed).damaged == report.damaged


def test_what_cannot_be_mended_without_the_network_stays_named_and_the_rest_is_mended(installed: Client) -> None:
    _spoil(_path(installed), 50_000)
    (installed.store.model("voice").folder / "config.json").unlink()  # its blob is still there
    report = _repair(installed)
    assert report.unrepaired == (f"voice 1.0 {NAME}",)
    assert isinstance(report.error, NetworkNotAllowed)
    assert _path(installed, "config.json").read_bytes() == model_files(FIRST)["config.json"]
    assert [damage.path for damage in _verify(installed).damaged] == [NAME]


@pytest.mark.parametrize("fault", ["corrupt", "missing", "offline"])
def test_a_source_that_fails_leaves_the_damage_named(installed: Client, world: SimulatedRepository, fault: str) -> None:
    _spoil(_path(installed), 50_000)
    source = world.source("bad")
    source.faults["packs/*"] = Fault(fault)  # type: ignore[arg-type]
    report = _repair(installed, source)
    assert (report.repaired_chunks, report.unrepaired) == (0, (f"voice 1.0 {NAME}",))
    assert isinstance(report.error, KenshoError)
    assert len(installed.of(ChunkRejected)) == (3 if fault == "corrupt" else 0)
    assert _repair(installed, world.source()).unrepaired == ()


DAMAGE = {
    "cut": lambda path: (path.chmod(0o644), os.truncate(path, 40_000)),
    "longer": lambda path: _spoil(path, path.stat().st_size, b"more"),
    "gone": lambda path: path.unlink(),
    "replaced": lambda path: (path.unlink(), path.write_bytes(b"other")),
    "a link": lambda path: (path.unlink(), path.symlink_to("/etc/passwd")),
    "a fifo": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("place", ["version", "blob", "both"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_mended(installed: Client, world: SimulatedRepository, kind: str, place: str) -> None:
    version = _path(installed)
    [file] = [file for file in installed.store.model("voice").files if file.path == NAME]
    blob = installed.store.blob_path(file.digest)
    for path in {"version": [version], "blob": [blob], "both": [version, blob]}[place]:
        DAMAGE[kind](path)
    source = world.source()
    assert _repair(installed, source).unrepaired == ()
    assert installed.content() == model_files(FIRST)
    assert _verify(installed, is_full=True).damaged == ()
    if place != "both" and kind in ("gone", "replaced", "a link", "a fifo"):
        assert source.bytes_fetched == 0, "the other name still had the bytes"


def test_a_lost_version_folder_comes_back_without_fetching(installed: Client, world: SimulatedRepository) -> None:
    installed.store.versions.remove(installed.store.model("voice").folder)
    source = world.source()
    assert _repair(installed, source).unrepaired == ()
    assert installed.content() == model_files(FIRST)
    assert source.requests == 0


def test_damaged_documents_are_fetched_by_digest_and_files_after_them(
    installed: Client, world: SimulatedRepository
) -> None:
    model = installed.store.model("voice")
    [file] = [file for file in model.files if file.path == NAME]
    _spoil(installed.store.blob_path(model.manifest), 10)
    _spoil(installed.store.blob_path(file.chunk_list), 30)
    _spoil(_path(installed), 50_000)
    assert len(_repair(installed).unrepaired) == 3
    source = world.source()
    report = _repair(installed, source)
    assert (report.repaired_chunks, report.unrepaired) == (1, ())
    assert len(source.ranges) == 1
    assert _verify(installed, is_full=True).damaged == ()


def test_versions_that_share_a_blob_are_mended_together_and_counted_once(
    installed: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    both = world.copy(tmp_path)
    both.publish("voice", "1.1", model_files(FIRST, note_txt=b"new"))
    installed.pull(both.source())
    _spoil(_path(installed), 50_000)
    report = _repair(installed, both.source())
    assert (report.repaired_chunks, report.unrepaired) == (1, ())
    assert _verify(installed, is_full=True).damaged == ()
    inodes = {installed.store.versions.path("voice", v).joinpath(NAME).stat().st_ino for v in ("1.0", "1.1")}
    assert len(inodes) == 1


def _damaged_store(ram: Path, world: SimulatedRepository, name: str) -> tuple[Client, VerifyReport]:
    client = Client(ram / name, world)
    client.pull(world.source())
    _spoil(_path(client), 50_000)
    (client.store.model("voice").folder / "empty.txt").unlink()
    return client, _verify(client)


@SWEEP
@pytest.mark.parametrize("fault", ["stop", errno.ENOSPC, errno.EIO], ids=["kill", "ENOSPC", "EIO"])
def test_a_repair_that_fails_at_any_step_leaves_old_or_new_and_the_next_one_works(
    ram: Path, world: SimulatedRepository, fault: int, stride: int
) -> None:
    whole = model_files(FIRST)[NAME]
    for at in range(1, 1000, stride):
        client, report = _damaged_store(ram, world, str(at))
        damaged = _path(client).read_bytes()
        disk = FaultyDisk(at=at, fault=fault)  # type: ignore[arg-type]
        with suppress(Stopped, StorageError, NotEnoughSpace):
            _mend(Client(client.root, world, disk=disk), report, world.source())
        disk.release()
        client.store.close()
        again = Client(client.root, world)
        assert _path(again).read_bytes() in (damaged, whole)
        assert _repair(again, world.source()).unrepaired == ()
        assert again.content() == model_files(FIRST)
        assert _verify(again, is_full=True).damaged == ()
        again.store.close()
        if not disk.is_reached:
            break
    assert at > 15


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["version", "blob"]), st.integers(0, 130_000), st.binary(min_size=1, max_size=30_000)
        ),
        min_size=1,
        max_size=4,
    )
)
def test_whatever_was_overwritten_a_repair_brings_back_the_published_bytes(
    ram: Path, world: SimulatedRepository, spots: list[tuple[str, int, bytes]]
) -> None:
    client = Client(ram / "any", world)
    client.pull(world.source())
    [file] = [file for file in client.store.model("voice").files if file.path == NAME]
    for place, offset, data in spots:
        _spoil(_path(client) if place == "version" else client.store.blob_path(file.digest), offset, data)
    source = world.source()
    assert _repair(client, source).unrepaired == ()
    assert client.content() == model_files(FIRST)
    assert _verify(client, is_full=True).damaged == ()
    client.store.close()


READ_ONLY = """
import sys
from pathlib import Path
from kensho.base.clock import SystemClock
from kensho.base.errors import StorageError
from kensho.delivery.checker import verify
from kensho.delivery.disk import RealDisk
from kensho.delivery.store import Store
store = Store.open(Path(sys.argv[1]), disk=RealDisk())
report = verify(store, is_full=True, clock=SystemClock(), emit=lambda event: None)
try:
    with store.writing():
        print("written")
except StorageError as error:
    print(store.is_read_only, report.files, len(report.damaged), bool(error.advice))
"""


@pytest.mark.real
@pytest.mark.needs("unshare")
def test_a_read_only_store_is_checked_and_refuses_to_be_changed(installed: Client) -> None:
    root = installed.root
    installed.store.close()
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespaces")
    script = f'mount --bind {root} {root} && mount -o remount,bind,ro {root} && exec "$@"'
    done = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-c",
            READ_ONLY,
            root,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "3", "0", "True"], done.stderr
