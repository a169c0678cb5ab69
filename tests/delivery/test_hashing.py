"""Digests of spans, whatever the number of threads."""

import errno
from pathlib import Path

import pytest

from kensho.base.ids import digest_of
from kensho.delivery.disk import RealDisk
from kensho.delivery.hashing import BLOCK_BYTES, BackgroundHash, hash_file, hash_spans
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


def test_a_hash_in_the_background_is_the_same_and_tells_its_error(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(DATA)
    good, bad = RealDisk(), FaultyDisk(at=2, fault=errno.EIO, is_reading=True)
    for disk in (good, bad):
        fd = disk.open_read(tmp_path / "f")
        hashing = BackgroundHash(disk, fd, len(DATA))
        hashing.wait()
        disk.close(fd)
        if disk is good:
            assert hashing.result() == digest_of(DATA)
        else:
            with pytest.raises(OSError, match="Input/output"):
                hashing.result()
