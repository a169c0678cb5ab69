"""The real disk refuses what is no regular file; the faulty one fails exactly where it was told to."""

import errno
import os
from pathlib import Path

import pytest

from kensho.base.errors import NotEnoughSpace, StorageError
from kensho.delivery.disk import RealDisk, storage_errors
from kensho.testing.disk import FaultyDisk, Stopped


def test_a_link_fifo_or_folder_is_never_opened_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    disk = RealDisk()
    for name in ("link", "fifo", "folder"):
        with pytest.raises(OSError):
            disk.open_read(tmp_path / name)
        with pytest.raises(OSError):
            disk.open_write(tmp_path / name)
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_the_lock_excludes_others_and_ends_with_its_descriptor(tmp_path: Path) -> None:
    disk = RealDisk()
    fd = disk.lock(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        disk.lock(tmp_path / "lock")
    disk.close(fd)
    disk.close(disk.lock(tmp_path / "lock"))


def test_holes_are_told_from_data(tmp_path: Path) -> None:
    disk = RealDisk()
    fd = disk.open_write(tmp_path / "part")
    disk.truncate(fd, 8 << 20)
    disk.write(fd, b"x" * 4096, 4 << 20)
    assert disk.has_data(fd, 4 << 20, 1 << 20)
    assert not disk.has_data(fd, 5 << 20, 1 << 20)
    assert disk.read_into(fd, memoryview(bytearray(8192)), (8 << 20) - 4096) == 4096
    disk.close(fd)


@pytest.mark.parametrize(
    ("number", "family"), [(errno.ENOSPC, NotEnoughSpace), (errno.EROFS, StorageError), (errno.EIO, StorageError)]
)
def test_kernel_errors_become_storage_errors_with_advice(number: int, family: type, tmp_path: Path) -> None:
    with pytest.raises(family) as caught, storage_errors("write a blob", tmp_path):
        raise OSError(number, "x")
    assert caught.value.advice
    assert str(tmp_path) in caught.value.message


def test_after_a_stop_nothing_is_done_any_more(tmp_path: Path) -> None:
    disk = FaultyDisk(at=2)
    disk.make_folder(tmp_path / "a")
    with pytest.raises(Stopped):
        disk.make_folder(tmp_path / "b")
    for act in (lambda: disk.unlink(tmp_path / "a"), lambda: disk.list_folder(tmp_path)):
        with pytest.raises(Stopped):
            act()
    assert disk.operations == ["make_folder", "make_folder"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_hits_once_or_lasts(tmp_path: Path) -> None:
    once = FaultyDisk(at=1, fault=errno.ENOSPC)
    with pytest.raises(OSError, match="space"):
        once.make_folder(tmp_path / "a")
    once.make_folder(tmp_path / "a")
    lasting = FaultyDisk(at=1, fault=errno.ENOSPC, is_lasting=True)
    for _ in range(3):
        with pytest.raises(OSError, match="space"):
            lasting.make_folder(tmp_path / "b")
