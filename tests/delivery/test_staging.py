"""Partial files: what is right is kept, whatever happened to the rest, and only a whole right file gets a name."""

import errno
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kensho.base.errors import Damaged, StorageError, TrustError
from kensho.base.ids import digest_of
from kensho.delivery.chunk_list import Chunk
from kensho.delivery.disk import RealDisk
from kensho.delivery.plan import Slot, WantedFile
from kensho.delivery.staging import Staging, offsets
from kensho.testing.disk import FaultyDisk

PARTS = [bytes([65 + number]) * 5000 for number in range(6)]
DATA = b"".join(PARTS)
CHUNKS = tuple(Chunk(digest_of(part), 5000, digest_of(b"pack"), 0, 5000, "raw") for part in PARTS)
FILE = WantedFile(digest_of(DATA), len(DATA), CHUNKS)
SLOTS = [Slot(FILE.digest, index, offset) for index, (offset, _) in enumerate(offsets(CHUNKS))]


@pytest.fixture
def staging(ram: Path) -> Staging:
    (ram / "staging").mkdir()
    (ram / "blobs").mkdir()
    return Staging(ram / "staging", disk=RealDisk())


def _fill(staging: Staging, *indices: int) -> None:
    staging.prepare(FILE)
    for index in indices:
        staging.write(SLOTS[index], PARTS[index])


def test_only_right_chunks_are_verified_and_holes_are_none(staging: Staging) -> None:
    assert staging.verified(FILE) == frozenset()
    _fill(staging, 1, 4)
    staging.write(SLOTS[2], PARTS[3])
    assert staging.verified(FILE) == {1, 4}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40_000))
def test_whatever_lies_in_staging_only_right_chunks_are_trusted(staging: Staging, junk: bytes) -> None:
    staging.path(FILE.digest).write_bytes(junk)
    found = staging.verified(FILE)
    assert found == {index for index in range(6) if junk[index * 5000 : (index + 1) * 5000] == PARTS[index]}
    _fill(staging, *set(range(6)) - found)
    assert staging.verified(FILE) == set(range(6))


def test_a_whole_file_gets_its_name_read_only_and_vouched_for(staging: Staging, ram: Path) -> None:
    _fill(staging, *range(6))
    record = staging.finish(FILE, ram / "blobs" / FILE.digest, now=5.0)
    target = ram / "blobs" / FILE.digest
    assert target.read_bytes() == DATA
    assert target.stat().st_mode & 0o777 == 0o444
    assert record.relinked(target.stat()) is not None
    assert not staging.path(FILE.digest).exists()


def test_a_file_that_is_not_whole_never_gets_its_name(staging: Staging, ram: Path) -> None:
    _fill(staging, 0, 1, 2, 3, 5)
    with pytest.raises(Damaged):
        staging.finish(FILE, ram / "blobs" / FILE.digest, now=5.0)
    assert not (ram / "blobs" / FILE.digest).exists()
    assert staging.verified(FILE) == {0, 1, 2, 3, 5}


def test_chunks_that_do_not_make_the_signed_file_are_the_publishers_contradiction(staging: Staging, ram: Path) -> None:
    wrong = WantedFile(digest_of(b"something else"), len(DATA), CHUNKS)
    staging.prepare(wrong)
    for index, part in enumerate(PARTS):
        staging.write(Slot(wrong.digest, index, index * 5000), part)
    with pytest.raises(TrustError):
        staging.finish(wrong, ram / "blobs" / wrong.digest, now=5.0)
    assert not list((ram / "blobs").iterdir())


def test_a_file_whose_fsync_failed_is_thrown_away(ram: Path) -> None:
    (ram / "staging").mkdir()
    (ram / "blobs").mkdir()
    disk = FaultyDisk()
    staging = Staging(ram / "staging", disk=disk)
    _fill(staging, *range(6))
    disk.fsync = lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        staging.finish(FILE, ram / "blobs" / FILE.digest, now=5.0)
    assert not staging.path(FILE.digest).exists(), "a later fsync would call its lost pages clean"


def test_much_that_was_written_is_synced_at_once_and_thrown_away_if_that_fails(
    ram: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ram / "staging").mkdir()
    monkeypatch.setattr("kensho.delivery.staging.SYNC_BYTES", 10_000)
    disk = FaultyDisk()
    staging = Staging(ram / "staging", disk=disk)
    _fill(staging, 0)
    assert disk.operations.count("fsync") == 0
    _fill(staging, *range(1, 5))
    assert disk.operations.count("fsync") == 2
    disk.fsync = lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error"))  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        staging.write(SLOTS[5], PARTS[5])
    assert not staging.path(FILE.digest).exists(), "a later fsync would call its lost pages clean"


@pytest.mark.parametrize("filled", [(0, 1, 2), range(6)])
def test_a_partial_file_that_vanishes_while_it_fills_never_gets_its_name(
    staging: Staging, ram: Path, filled: tuple[int, ...]
) -> None:
    """What was hashed of it is worth nothing then."""
    _fill(staging, *filled)
    staging.path(FILE.digest).unlink()
    for index in sorted(set(range(6)) - set(filled)):
        staging.write(SLOTS[index], PARTS[index])
    with pytest.raises(Damaged):
        staging.finish(FILE, ram / "blobs" / FILE.digest, now=5.0)
    assert not (ram / "blobs" / FILE.digest).exists()


def test_a_copy_that_cannot_be_read_whole_is_none(staging: Staging, ram: Path) -> None:
    staging.prepare(FILE)
    (ram / "other").write_bytes(b"-" + PARTS[1] + PARTS[2][:-1])
    disk, buffer = RealDisk(), memoryview(bytearray(700))
    fd = disk.open_read(ram / "other")
    assert staging.copy(SLOTS[1], 5000, fd, 1, buffer)
    assert not staging.copy(SLOTS[2], 5000, fd, 5001, buffer)
    disk.close(fd)
    assert staging.verified(FILE) == {1}


def test_a_finished_file_that_lost_its_rename_and_then_a_chunk_can_be_written_again(
    staging: Staging, ram: Path
) -> None:
    _fill(staging, *range(6))
    path = staging.path(FILE.digest)
    path.write_bytes(DATA[:10_000] + b"rot" + DATA[10_003:])
    path.chmod(0o444)
    assert staging.verified(FILE) == {0, 1, 3, 4, 5}
    _fill(staging, 2)
    staging.finish(FILE, ram / "blobs" / FILE.digest, now=5.0)


def test_an_empty_file_needs_no_chunk(staging: Staging, ram: Path) -> None:
    empty = WantedFile(digest_of(b""), 0, ())
    staging.prepare(empty)
    staging.finish(empty, ram / "blobs" / empty.digest, now=5.0)
    assert (ram / "blobs" / empty.digest).read_bytes() == b""


def test_what_was_hashed_of_another_file_of_that_name_is_not_believed(staging: Staging, ram: Path) -> None:
    _fill(staging, *range(6))  # hashed as it was filled
    staging.path(FILE.digest).unlink()
    staging.path(FILE.digest).write_bytes(bytes(len(DATA)))
    with pytest.raises(Damaged):
        staging.finish(FILE, ram / "blobs" / FILE.digest, now=5.0)
    assert not (ram / "blobs" / FILE.digest).exists()


def test_a_file_that_another_process_put_in_its_place_is_not_vouched_for(ram: Path) -> None:
    class Racing(RealDisk):
        def rename(self, source: Path, target: Path) -> None:
            source.unlink()
            source.write_bytes(b"x")
            super().rename(source, target)

    for name in ("staging", "blobs"):
        (ram / name).mkdir()
    staging = Staging(ram / "staging", disk=Racing())
    _fill(staging, *range(6))
    with pytest.raises(Damaged, match="another process"):
        staging.finish(FILE, ram / "blobs" / FILE.digest, now=5.0)


def test_nothing_stays_open_and_few_files_are_followed(ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kensho.delivery.staging.MAX_FOLLOWED", 1)
    for name in ("staging", "blobs"):
        (ram / name).mkdir()
    staging = Staging(ram / "staging", disk=RealDisk())
    other = WantedFile(digest_of(DATA * 2), 2 * len(DATA), CHUNKS * 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    _fill(staging, 0, 1, 2)
    staging.prepare(other)
    for index, (offset, _) in enumerate(offsets(other.chunks)):
        staging.write(Slot(other.digest, index, offset), PARTS[index % 6])
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
    staging.finish(other, ram / "blobs" / other.digest, now=5.0)
    _fill(staging, 3, 4, 5)
    staging.release()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    staging.finish(FILE, ram / "blobs" / FILE.digest, now=5.0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
