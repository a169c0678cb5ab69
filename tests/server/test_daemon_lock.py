"""One daemon for one store."""

import os
from pathlib import Path

import pytest

from kensho.base.errors import DaemonRunning, StorageError
from kensho.server.daemon_lock import LOCK_NAME, DaemonLock, running_daemon
from kensho.testing.clock import VirtualClock

CLOCK = VirtualClock(wall_s=1_800_000_000)


def test_the_second_is_told_who_runs_and_since_when(tmp_path: Path) -> None:
    with DaemonLock(tmp_path, clock=CLOCK):
        with pytest.raises(DaemonRunning) as caught:
            DaemonLock(tmp_path, clock=CLOCK)
        assert f"process {os.getpid()}, since 2027-01-15 08:00:00 UTC" in caught.value.message
        assert running_daemon(tmp_path) == f"process {os.getpid()}, since 2027-01-15 08:00:00 UTC"
    assert running_daemon(tmp_path) is None
    DaemonLock(tmp_path, clock=CLOCK).close()


def test_words_left_by_one_that_was_killed_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("process 1, since a longer time than the others\n" * 9)
    assert running_daemon(tmp_path) is None
    with DaemonLock(tmp_path, clock=CLOCK):
        assert running_daemon(tmp_path) == f"process {os.getpid()}, since 2027-01-15 08:00:00 UTC"


def test_who_only_asks_is_not_in_the_way(tmp_path: Path) -> None:
    import fcntl

    class Patient(VirtualClock):
        def sleep(self, duration_s: float) -> None:
            os.close(asking)  # while the newcomer waits, who asked is done

    (tmp_path / LOCK_NAME).touch()
    asking = os.open(tmp_path / LOCK_NAME, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    DaemonLock(tmp_path, clock=Patient()).close()


def test_a_store_that_is_away_or_planted_is_a_clear_refusal(tmp_path: Path) -> None:
    assert running_daemon(tmp_path / "none") is None
    with pytest.raises(StorageError, match="cannot open"):
        DaemonLock(tmp_path / "none", clock=CLOCK)
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / LOCK_NAME).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        DaemonLock(tmp_path, clock=CLOCK)
    assert (tmp_path / "elsewhere").read_text() == "precious"
