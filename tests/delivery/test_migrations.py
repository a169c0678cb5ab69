"""A store is a whole store of one format, wherever its migration was killed; what is newer is left alone."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from kensho.base.errors import KenshoError, StorageError, StoreBusy
from kensho.delivery import migrations
from kensho.delivery import store as store_module
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.durable import make_folders, write_document
from kensho.delivery.store import Store
from kensho.testing.client import FIRST, Client, model_files
from kensho.testing.disk import FaultyDisk, Stopped
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store


def _add_notes(root: Path, disk: Disk) -> None:
    """A migration as it should be: a folder, a document and a table more; all of it may be there already."""
    make_folders(disk, root / "notes")
    write_document(disk, root / "notes" / "list", b"notes of format 2")
    with closing(sqlite3.connect(root / "state.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE IF NOT EXISTS notes (text TEXT)")


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """This Kensho has format 3, in two steps."""
    with monkeypatch.context() as patch:
        for module in (migrations, store_module):
            patch.setattr(module, "FORMAT", 3)
        patch.setattr(
            migrations, "MIGRATIONS", {1: _add_notes, 2: lambda root, disk: make_folders(disk, root / "more")}
        )
        yield patch


def _format(root: Path) -> bytes:
    return (root / "format").read_bytes()


def test_an_older_store_is_brought_forward_and_keeps_what_it_has(
    client: Client, world: SimulatedRepository, newer: pytest.MonkeyPatch
) -> None:
    (client.root / "format").unlink()
    (client.root / "format").write_bytes(b"1\n")
    client.pull(world.source())
    client.store.close()
    again = Store.open(client.root, disk=RealDisk())
    assert (again.model("voice").version, _format(client.root)) == ("1.0", b"3\n")
    assert (client.root / "notes" / "list").read_bytes() == b"notes of format 2"
    assert (client.root / "more").is_dir()
    again.close()


def test_a_migration_killed_at_any_step_leaves_a_store_that_old_and_new_kensho_can_use(
    ram: Path, world: SimulatedRepository, newer: pytest.MonkeyPatch
) -> None:
    formats = set()
    for at in range(1, 100):
        root = ram / str(at)
        with pytest.MonkeyPatch.context() as old:
            for module in (migrations, store_module):
                old.setattr(module, "FORMAT", 1)
            client = Client(root, world)
            client.pull(world.source())
            client.store.close()
        disk = FaultyDisk(at=at)
        with suppress(Stopped):
            Store.open(root, disk=disk).close()
        disk.release()
        formats.add(_format(root))
        if _format(root) == b"1\n":
            with pytest.MonkeyPatch.context() as old:
                for module in (migrations, store_module):
                    old.setattr(module, "FORMAT", 1)
                client = Client(root, world)
                assert client.content() == model_files(FIRST)
                client.store.state.set_setting("used", "by an older Kensho")
                client.store.close()
        client = Client(root, world)
        assert client.content() == model_files(FIRST)
        assert _format(root) == b"3\n"
        assert client.pull(world.source()).models[0].state == "current"
        client.store.close()
        if not disk.is_reached:
            break
    assert at > 10
    assert formats == {b"1\n", b"2\n", b"3\n"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_leaves_the_old_format(client: Client, newer: pytest.MonkeyPatch, number: int) -> None:
    client.store.close()
    (client.root / "format").unlink()
    (client.root / "format").write_bytes(b"1\n")
    for at in (1, 2, 4, 7):
        with pytest.raises(StorageError) as caught:
            Store.open(client.root, disk=FaultyDisk(at=at, fault=number, is_lasting=True))
        assert caught.value.advice
        assert _format(client.root) == b"1\n"
    Store.open(client.root, disk=RealDisk()).close()


def test_two_processes_do_not_migrate_at_once(client: Client, newer: pytest.MonkeyPatch) -> None:
    (client.root / "format").unlink()
    (client.root / "format").write_bytes(b"1\n")
    with client.store.writing(), pytest.raises(StoreBusy):
        Store.open(client.root, disk=RealDisk())
    Store.open(client.root, disk=RealDisk()).close()


@pytest.mark.parametrize("written", [b"2\n", b"99", b"0", b"-1", b"", b"x", b"1" * 40])
def test_a_newer_or_odd_format_is_refused_and_nothing_is_made(client: Client, written: bytes) -> None:
    client.store.close()
    (client.root / "format").unlink()
    (client.root / "format").write_bytes(written)
    for path in client.root.glob("state.db*"):
        path.unlink()  # a later format may have no such file
    before = sorted(client.root.rglob("*"))
    for make in (Store.open, Store.create):
        with pytest.raises(KenshoError) as caught:
            make(client.root, disk=RealDisk())
        assert "update Kensho" in caught.value.advice
    assert sorted(client.root.rglob("*")) == before
    assert _format(client.root) == written
