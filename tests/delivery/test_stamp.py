"""The stamp of a store tells every commit of any program, and no reading."""

import time
from pathlib import Path

import pytest

from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.delivery.installed import InstalledFile, Release
from kensho.delivery.stamp import TICK_S, read_stamp
from kensho.delivery.state import State

FILE = InstalledFile("a.bin", 3, digest_of(b"abc"), digest_of(b"list"), 1, True, digest_of(b"abc"), None)
RELEASE = Release("m", "1", 1, digest_of(b"manifest"), 5.0, (FILE,))


@pytest.fixture
def state(tmp_path: Path) -> State:
    State.create(tmp_path / "state.db")
    return State(tmp_path / "state.db")


def ticked(store: Path) -> float:
    """A moment at which the kernel's file times are later than those of the store, by any clock."""
    written_ns = max(path.stat().st_mtime_ns for path in store.iterdir())
    while time.time_ns() < written_ns + 20_000_000:
        pass
    return time.time() + 60


def test_every_commit_of_another_program_is_told_and_no_reading(state: State, tmp_path: Path) -> None:
    """Each change writes over the one before, in the same place: the size of the log tells nothing."""
    other = State(tmp_path / "state.db")
    other.install(RELEASE, [], now=5.0)
    for version in ("2", "1", "2", "1"):
        now = ticked(tmp_path)
        state._db.execute("PRAGMA wal_checkpoint(RESTART)")
        before = read_stamp(tmp_path, now=now)
        assert state.models() and other.releases()
        assert read_stamp(tmp_path, now=now) == before is not None
        other.install(replace(RELEASE, version=version), [], now=5.0)
        assert read_stamp(tmp_path, now=now) != before
        assert state.models()[0].current == version
    other.close()
    state.close()


def test_right_after_a_commit_there_is_no_stamp(state: State, tmp_path: Path) -> None:
    state.install(RELEASE, [], now=5.0)
    written_s = (tmp_path / "state.db-wal").stat().st_mtime
    assert read_stamp(tmp_path, now=written_s) is None
    assert read_stamp(tmp_path, now=written_s + TICK_S / 2) is None
    assert read_stamp(tmp_path, now=written_s + 2 * TICK_S) is not None
    assert read_stamp(tmp_path, now=written_s - 3600) is not None, "the clock was set back"
    state.close()


def test_a_disk_that_is_away_is_another_stamp_and_no_error(state: State, tmp_path: Path) -> None:
    now = ticked(tmp_path)
    before = read_stamp(tmp_path, now=now)
    state.close()
    for path in tmp_path.iterdir():
        path.unlink()
    assert read_stamp(tmp_path, now=now) not in (None, before)
