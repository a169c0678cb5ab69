"""The store is made whole or not at all, has one writer, refuses what it does not know, shows only whole versions."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

from kensho.base.errors import ConfigError, Damaged, NotInstalled, StorageError, StoreBusy
from kensho.base.ids import Digest, digest_of
from kensho.delivery.disk import RealDisk
from kensho.delivery.installed import InstalledFile, Record, Release
from kensho.delivery.store import DATABASE_ENDS, Store
from kensho.delivery.versions import Versions
from kensho.testing.disk import FaultyDisk, Stopped

NOW = 1_000_000.0


@pytest.fixture
def store(ram: Path) -> Store:
    return Store.create(ram / "store", disk=RealDisk())


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _blob(store: Store, data: bytes) -> tuple[Digest, Record]:
    digest = store.put_document(data)
    return digest, Record.of(digest, store.blob_path(digest).stat(), NOW)


def test_a_store_is_made_once_and_opened_again(store: Store) -> None:
    assert sorted(path.name for path in store.root.iterdir() if path.is_dir()) == sorted(
        ["trusted", "blobs", "versions", "staging", "graphs", "logs"]
    )
    store.state.set_setting("source", "x")
    store.close()
    again = Store.create(store.root, disk=RealDisk())
    assert again.state.setting("source") == "x"
    assert again.installed() == []
    assert not again.is_read_only


def test_making_a_store_can_be_killed_at_every_step(ram: Path) -> None:
    for at in range(1, 100):
        root = ram / str(at)
        disk = FaultyDisk(at=at)
        with suppress(Stopped):
            Store.create(root, disk=disk).close()
        disk.release()
        if not disk.is_reached:
            break
        Store.create(root, disk=RealDisk()).close()
    assert at > 10


def test_what_a_killed_making_of_the_database_leaves_is_not_foreign(tmp_path: Path) -> None:
    for end in DATABASE_ENDS:
        root = tmp_path / f"store{end}"
        root.mkdir()
        (root / f".state.db.partial{end}").write_bytes(b"torn")
        Store.create(root, disk=RealDisk()).close()


def test_a_folder_with_other_things_is_never_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"thesis\.txt"):
        Store.create(tmp_path, disk=RealDisk())
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_missing_or_newer_store_is_refused_and_left_alone(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        Store.open(tmp_path / "none", disk=RealDisk())
    assert "kensho init" in caught.value.advice
    store.close()
    (store.root / "format").unlink()
    (store.root / "format").write_bytes(b"2\n")
    before = _tree(store.root)
    for make in (Store.open, Store.create):
        with pytest.raises(StorageError) as caught:
            make(store.root, disk=RealDisk())
        assert "update Kensho" in caught.value.advice
    assert _tree(store.root) == before


def test_there_is_one_writer_and_its_right_ends_with_it(store: Store) -> None:
    other = Store.open(store.root, disk=RealDisk())
    with store.writing(), pytest.raises(StoreBusy), other.writing():
        pass
    with other.writing():
        pass


def test_what_the_kernel_refuses_is_a_storage_error_with_advice(ram: Path) -> None:
    for number in (errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO):
        for at in range(1, 12):
            with pytest.raises(StorageError) as caught:
                Store.create(ram / f"{number}-{at}", disk=FaultyDisk(at=at, fault=number, is_lasting=True))
            assert caught.value.advice


def test_a_document_is_kept_by_digest_and_damage_is_told(store: Store) -> None:
    digest = store.put_document(b"list")
    assert store.document(digest, max_bytes=10) == b"list"
    path = store.blob_path(digest)
    assert path.stat().st_mode & 0o777 == 0o444
    path.chmod(0o600)
    path.write_bytes(b"lisT")
    with pytest.raises(Damaged):
        store.document(digest, max_bytes=10)
    assert store.put_document(b"list") == digest  # written anew, since it was not right
    assert store.document(digest, max_bytes=10) == b"list"
    with pytest.raises(Damaged):
        store.document(digest_of(b"none"), max_bytes=10)


def test_a_version_appears_whole_and_its_files_are_the_blobs(store: Store) -> None:
    (a, record_a), (b, record_b) = _blob(store, b"aaa"), _blob(store, b"bbb")
    with store.writing():
        records = store.versions.publish("m", "1", {"x.bin": a, "sub/y.bin": b}, [record_a, record_b], now=NOW)
    folder = store.versions.path("m", "1")
    assert _tree(folder) == {"x.bin": b"aaa", "sub/y.bin": b"bbb"}
    assert (folder / "x.bin").stat().st_ino == store.blob_path(a).stat().st_ino
    assert {record.digest for record in records} == {a, b}
    for record in records:
        assert record.vouches_for(record.digest, store.blob_path(record.digest).stat(), now=NOW)


def test_publishing_a_version_can_be_killed_at_every_step(ram: Path) -> None:
    for at in range(1, 100):
        root = ram / str(at)
        for folder in ("blobs", "staging", "versions"):
            (root / folder).mkdir(parents=True)
        names = {name: digest_of(name.encode()) for name in ("x", "sub/y", "sub/deep/z")}
        for name, digest in names.items():
            (root / "blobs" / digest).write_bytes(name.encode())
        whole = {name: name.encode() for name in names}
        disk = FaultyDisk(at=at)
        with suppress(Stopped):
            Versions(root, disk=disk).publish("m", "1", names, [], now=NOW)
        disk.release()
        seen = _tree(root / "versions")
        assert seen in ({}, {f"m/1/{name}": data for name, data in whole.items()})
        Versions(root, disk=RealDisk()).publish("m", "1", names, [], now=NOW)
        assert _tree(root / "versions" / "m" / "1") == whole
        if not disk.is_reached:
            break
    assert at > 10


def test_a_name_is_replaced_without_touching_who_has_it_open(store: Store) -> None:
    (old, _), (new, _) = _blob(store, b"old"), _blob(store, b"new")
    store.versions.publish("m", "1", {"x": old}, [], now=NOW)
    with (store.versions.path("m", "1") / "x").open("rb") as reader:
        store.versions.publish("m", "1", {"x": new, "late": old}, [], now=NOW)
        assert reader.read() == b"old"
    assert _tree(store.versions.path("m", "1")) == {"x": b"new", "late": b"old"}
    assert not list((store.root / "staging").iterdir())


def test_where_hard_links_are_refused_files_are_copied_and_vouched_for(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", disk=FaultyDisk(has_links=False))
    assert not store.versions.has_links()
    digest, record = _blob(store, b"x" * 3_000_000)
    for _ in range(2):
        records = store.versions.publish("m", "1", {"x": digest}, [record], now=NOW)
        name = store.versions.path("m", "1") / "x"
        assert name.read_bytes() == b"x" * 3_000_000
        assert name.stat().st_ino != store.blob_path(digest).stat().st_ino
        assert any(record.vouches_for(digest, name.stat(), now=NOW) for record in records)
        assert any(record.vouches_for(digest, store.blob_path(digest).stat(), now=NOW) for record in records)


def test_a_blob_touched_after_it_was_verified_is_not_vouched_for(store: Store) -> None:
    digest, record = _blob(store, b"aaa")
    os.utime(store.blob_path(digest), ns=(0, 5))
    assert store.versions.publish("m", "1", {"x": digest}, [record], now=NOW) == []


def test_removing_never_follows_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(b"1")
    folder = store.root / "staging" / "version.new"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "precious")
    store.versions.remove(folder)
    assert (tmp_path / "precious" / "file").exists()
    assert not folder.exists()


def test_models_are_listed_and_missing_ones_named(store: Store) -> None:
    digest, record = _blob(store, b"aaa")
    file = InstalledFile("x", 3, digest, digest, 1, True, digest, None)
    store.state.install(Release("m", "1", 1, digest, NOW, (file,)), [record], now=NOW)
    model = store.model("m")
    assert (model.version, model.previous, model.folder, model.is_degraded) == (
        "1",
        None,
        store.versions.path("m", "1"),
        False,
    )
    assert store.release("m", "1").files == (file,)
    for ask in (lambda: store.model("other"), lambda: store.release("m", "9"), lambda: store.release("q", "1")):
        with pytest.raises(NotInstalled) as caught:
            ask()
        assert caught.value.advice
