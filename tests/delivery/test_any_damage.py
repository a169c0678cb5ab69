"""Whatever happened to the files of a store, its own commands bring back the published bytes, and touch nothing else.

Damage is drawn: flips, cuts, growth, loss; and links, FIFOs and folders planted where files belong, or where folders
do. What lies outside the store is looked at, too.
"""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kensho.delivery.checker import verify
from kensho.delivery.repair import Repairer
from kensho.testing.client import FIRST, SECOND, Client, model_files
from kensho.testing.memory_source import read_folder
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

FOLDERS = ("blobs", "staging", "versions", "versions/voice", "versions/voice/1.0")
DAMAGES = ("flip", "cut", "grow", "empty", "lose", "link", "dangling", "twin", "fifo", "folder")
Damage = tuple[str, int, str, int]
"""Folder of the store, which of its entries, what happens to it, and where."""

damages = st.lists(
    st.tuples(st.sampled_from(FOLDERS), st.integers(0, 20), st.sampled_from(DAMAGES), st.integers(0, 130_000)),
    min_size=1,
    max_size=4,
)


def _spoil(root: Path, outside: Path, damage: Damage) -> None:
    folder, number, what, at = damage
    is_own = (root / folder).resolve() == root.resolve() / folder  # not through a link that was planted before
    entries = sorted((root / folder).iterdir()) if is_own and (root / folder).is_dir() else []
    if not entries:
        return
    path = entries[number % len(entries)]
    if what in ("flip", "cut", "grow", "empty"):
        if path.is_symlink() or not path.is_file():
            return
        data = bytearray(path.read_bytes())
        if what == "flip" and data:
            data[at % len(data)] ^= 0x10
        path.chmod(0o644)
        with path.open("r+b") as file:  # in place: every name of the file is hit
            file.truncate({"cut": at % (len(data) + 1), "empty": 0}.get(what, len(data)))
            file.write(data if what == "flip" else b"")
            if what == "grow":
                file.seek(0, os.SEEK_END)
                file.write(b"more")
        return
    _remove(path)
    match what:
        case "link":
            path.symlink_to(outside / ("folder" if at % 2 else "file"))
        case "dangling":
            path.symlink_to(outside / "nothing")
        case "twin":
            path.hardlink_to(outside / "file")
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
            (path / "junk").write_bytes(b"junk")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _mend(client: Client, world: SimulatedRepository) -> None:
    emit = client.events.append
    damaged = verify(client.store, is_full=True, clock=client.clock, emit=emit).damaged
    repairer = Repairer(client.store, [world.source()], emit=emit, clock=client.clock, rng=lambda: 0.5, connections=1)
    report = repairer.repair(damaged)
    assert not report.error, report.error
    assert not report.unrepaired


def _is_right(client: Client, version: str, files: dict[str, bytes]) -> None:
    assert client.store.model("voice").version == version
    content = client.content()
    assert {path: content.get(path) for path in files} == files  # what else lies there is never opened
    assert not any(path.is_symlink() for path in client.store.model("voice").folder.rglob("*"))
    assert not verify(client.store, is_full=True, clock=client.clock, emit=client.events.append).damaged


def _outside(ram: Path) -> Path:
    outside = ram / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_bytes(b"mine")
    (outside / "folder" / "config.json").write_bytes(b"mine too")
    return outside


def _check(ram: Path, world: SimulatedRepository, grown: SimulatedRepository, damage: list[Damage], order: str) -> None:
    ram = Path(tempfile.mkdtemp(dir=ram))
    outside = _outside(ram)
    before = read_folder(outside)
    client = Client(ram / "store", world)
    client.pull(world.source())
    wanted = grown.manifest("voice", "2.0").files
    for name in [f"{file.digest}.part" for file in wanted] + ["version.new", "name.new", "probe.new", "probe.link"]:
        (client.root / "staging" / name).write_bytes(b"left over")
    for one in damage:
        _spoil(client.root, outside, one)
    if order == "repair":
        _mend(client, world)
        _is_right(client, "1.0", model_files(FIRST))
    report = client.pull(grown.source())
    assert not report.first_error, report.first_error
    _mend(client, grown)  # of the previous version
    _is_right(client, "2.0", model_files(SECOND))
    assert read_folder(outside) == before
    client.store.close()
    shutil.rmtree(ram)


ANY = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@example(damage=[("versions", 0, "link", 1)], order="repair")
@example(damage=[("versions/voice", 0, "link", 1)], order="repair")
@example(damage=[("blobs", 0, "folder", 0), ("versions/voice/1.0", 1, "fifo", 0)], order="pull")
@settings(max_examples=3, **ANY)
@given(damage=damages, order=st.sampled_from(["repair", "pull"]))
def test_a_damaged_store_is_brought_back_to_the_published_bytes(
    ram: Path, world: SimulatedRepository, grown: SimulatedRepository, damage: list[Damage], order: str
) -> None:
    _check(ram, world, grown, damage, order)


@pytest.mark.real
@settings(max_examples=80, **ANY)
@given(damage=damages, order=st.sampled_from(["repair", "pull"]))
def test_so_is_every_other_damaged_store(
    ram: Path, world: SimulatedRepository, grown: SimulatedRepository, damage: list[Damage], order: str
) -> None:
    _check(ram, world, grown, damage, order)
