"""kensho.delivery.durable: a document is old or new, whenever its writer dies."""

import stat
from pathlib import Path

import pytest

from kensho.base.errors import TrustError
from kensho.delivery.disk import RealDisk
from kensho.delivery.durable import make_folders, read_document, write_document
from kensho.testing.disk import FaultyDisk, Stopped


def test_a_document_is_old_or_new_when_the_writer_dies_at_any_operation(tmp_path: Path) -> None:
    path = tmp_path / "timestamp.json"
    at = 0
    while True:
        at += 1
        write_document(RealDisk(), path, b"old")
        disk = FaultyDisk(at=at)
        try:
            write_document(disk, path, b"newer")
        except Stopped:
            disk.release()
        assert path.read_bytes() in (b"old", b"newer")
        if not disk.is_reached:
            break
    assert at > 5
    assert path.read_bytes() == b"newer"


def test_a_document_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path: Path) -> None:
    disk = FaultyDisk()
    write_document(disk, tmp_path / "a", b"x")
    done = [name for name in disk.operations if name in ("write", "fsync", "rename", "fsync_folder")]
    assert done == ["write", "fsync", "rename", "fsync_folder"]


def test_a_document_is_read_only_and_readable_for_a_web_server(tmp_path: Path) -> None:
    write_document(RealDisk(), tmp_path / "a", b"x")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o444


def test_each_new_folder_is_synced_in_its_parent_and_so_is_the_one_that_was_there(tmp_path: Path) -> None:
    disk = FaultyDisk()
    make_folders(disk, tmp_path / "a" / "b")
    make_folders(disk, tmp_path / "a" / "b")
    assert disk.operations == ["fsync_folder", *["make_folder", "fsync_folder"] * 2, "fsync_folder"]


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert read_document(RealDisk(), path, max_bytes=4) is None
    path.write_bytes(b"12345")
    with pytest.raises(TrustError, match="5 bytes"):
        read_document(RealDisk(), path, max_bytes=4)
    assert read_document(RealDisk(), path, max_bytes=5) == b"12345"
