"""Digests of spans, whatever the number of threads."""

import errno
import os
from itertools import permutations
from pathlib import Path

import pytest

from kensho.base.ids import digest_of
from kensho.delivery import hashing
from kensho.delivery.disk import RealDisk
from kensho.delivery.hashing import BLOCK_BYTES, FollowingHash, hash_file, hash_spans
from kensho.delivery.parallel import for_each
from kensho.testing.disk import FaultyDisk

DATA = bytes(i * 31 % 253 for i in range(BLOCK_BYTES + 12345))


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_spans_are_hashed_in_order_and_end_with_the_file(threads: int, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    disk = RealDisk()
    fd = disk.open_read(tmp_path / "f")
    spans = [(0, len(DATA)), (5, 0), (100, 7), (len(DATA) - 3, 10), (len(DATA) + 9, 1)]
    assert hash_spans(disk, fd, spans, threads=threads) == [digest_of(DATA[at : at + size]) for at, size in spans]
    assert hash_spans(disk, fd, [], threads=threads) == []
    assert hash_file(disk, fd, len(DATA)) == digest_of(DATA)
    disk.close(fd)


def test_a_read_error_is_not_swallowed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    disk = FaultyDisk(at=3, fault=errno.EIO, is_reading=True)
    fd = disk.open_read(tmp_path / "f")
    with pytest.raises(OSError, match="Input/output"):
        hash_spans(disk, fd, [(0, len(DATA))] * 4)
    disk.close(fd)


PARTS = [5, BLOCK_BYTES, 1, 3000, 9339]
ORDERS = list(permutations(range(5)))[::7]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_following_hash_is_that_of_the_file_in_whatever_order_it_is_filled(threads: int, tmp_path: Path) -> None:
    assert sum(PARTS) == len(DATA)
    starts = [sum(PARTS[:index]) for index in range(5)]
    disk = RealDisk()
    for order in ORDERS:
        fd = disk.open_write(tmp_path / f"{threads}{order}")
        following = FollowingHash(disk, tmp_path / f"{threads}{order}", PARTS)

        def act(index: int, fd: int = fd, following: FollowingHash = following) -> None:
            disk.write(fd, DATA[starts[index] : starts[index] + PARTS[index]], starts[index])
            following.fill(index)
            following.follow()

        for_each(order, act, threads=threads)
        disk.write(fd, b"?" * len(DATA), 0)  # it has followed to the end: nothing is left to read
        assert following.finish(fd) == digest_of(DATA)
        following.close()
        disk.close(fd)


def test_a_part_that_is_written_again_is_hashed_again(tmp_path: Path) -> None:
    path, disk = tmp_path / "f", RealDisk()
    path.write_bytes(b"wrong" + DATA[5:])
    following = FollowingHash(disk, path, PARTS)
    following.fill(*range(5))
    following.follow()
    path.write_bytes(DATA)
    following.fill(0)
    fd = disk.open_read(path)
    assert following.finish(fd) == digest_of(DATA)
    disk.close(fd)


def test_what_nobody_filled_is_hashed_at_the_end(tmp_path: Path) -> None:
    path, disk = tmp_path / "f", RealDisk()
    path.write_bytes(DATA)
    following = FollowingHash(disk, path, PARTS)
    following.fill(0, 1, 4)
    following.follow()
    fd = disk.open_read(path)
    assert following.finish(fd) == digest_of(DATA)
    disk.close(fd)
    with pytest.raises(OSError, match="Bad file"):
        FollowingHash(disk, path, PARTS).finish(fd)


def test_following_is_done_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "MAX_FOLLOW_BYTES", 1)
    path, disk = tmp_path / "f", FaultyDisk()
    path.write_bytes(DATA)
    following = FollowingHash(disk, path, PARTS)
    following.fill(*range(5))
    reads = [following.follow() or disk.reads for _ in range(6)]
    assert reads == sorted(reads)
    assert reads[0] < reads[4] == reads[5]


@pytest.mark.parametrize("kind", ["replaced", "cut"])
def test_what_was_hashed_of_a_file_that_was_replaced_or_cut_is_forgotten(kind: str, tmp_path: Path) -> None:
    path, disk = tmp_path / "f", RealDisk()
    path.write_bytes(DATA)
    following = FollowingHash(disk, path, PARTS)
    following.fill(*range(5))
    following.follow()
    if kind == "replaced":
        path.unlink()
        path.write_bytes(b"x" * len(DATA))
    else:
        os.truncate(path, 100)
    fd = disk.open_read(path)
    found = following.finish(fd)
    following.close()
    disk.close(fd)
    assert found == digest_of(path.read_bytes())
