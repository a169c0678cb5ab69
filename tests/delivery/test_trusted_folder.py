"""kensho.delivery.trusted_folder: documents change one by one, atomically, and never back."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from kensho.base.errors import ConfigError, StorageError, StoreBusy
from kensho.base.structs import replace
from kensho.delivery.disk import RealDisk
from kensho.delivery.trusted_folder import Refreshed, TrustedFolder

NOW = datetime(2026, 11, 20, tzinfo=UTC)
REFRESH = Refreshed(at=NOW, role="timestamp", expires=NOW.replace(year=2027))


@pytest.fixture
def folder(tmp_path: Path) -> TrustedFolder:
    found = TrustedFolder(tmp_path / "trusted", RealDisk())
    found.begin(b"root 1", lambda data: data.startswith(b"root"))
    return found


def test_beginning_again_keeps_the_root_that_it_led_to(folder: TrustedFolder) -> None:
    folder.commit("root", b"root 2", b"root 1")
    assert folder.begin(b"root 1", lambda data: True) == b"root 2"
    assert folder.begin(b"root 2", lambda data: True) == b"root 2"
    with pytest.raises(ConfigError, match="another root"):
        folder.begin(b"root of another publisher", lambda data: True)


def test_a_damaged_root_is_begun_anew(folder: TrustedFolder) -> None:
    folder.commit("root", b"rot", b"root 1")
    assert folder.begin(b"root 1", lambda data: data.startswith(b"root")) == b"root 1"
    assert folder.read("root") == b"root 1"


def test_an_older_view_never_replaces_what_another_process_accepted(folder: TrustedFolder) -> None:
    folder.commit("timestamp", b"2", None)
    with pytest.raises(StoreBusy):
        folder.commit("timestamp", b"1", None)
    assert folder.read("timestamp") == b"2"
    folder.commit("timestamp", b"2", None)  # both accepted the same: no quarrel
    folder.commit("timestamp", b"3", b"2")
    assert folder.read("timestamp") == b"3"


def test_a_commit_waits_for_no_one(folder: TrustedFolder) -> None:
    disk = RealDisk()
    fd = disk.lock(folder.path / ".lock")
    try:
        with pytest.raises(StoreBusy):
            folder.commit("timestamp", b"1", None)
        folder.note_refresh(REFRESH)  # the other process notes its own
    finally:
        disk.close(fd)


def test_the_clock_has_a_floor_that_only_rises(folder: TrustedFolder) -> None:
    assert folder.latest_seen().year == 1970
    folder.note_refresh(REFRESH)
    folder.note_refresh(replace(REFRESH, at=NOW.replace(year=2025), role="root"))
    assert folder.latest_seen() == NOW
    assert folder.refreshed() == REFRESH


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'{"at":-1,"expires":1,"role":"root"}',
        b'{"at":1e9,"expires":1,"role":"root"}',
        b'{"at":1,"expires":' + b"9" * 18 + b',"role":"root"}',
        b'{"at":1,"expires":1,"role":7}',
        b"x" * 300,
    ],
)
def test_a_damaged_record_of_the_refresh_is_none(folder: TrustedFolder, data: bytes) -> None:
    (folder.path / "refresh.record").write_bytes(data)
    assert folder.refreshed() is None
    assert folder.latest_seen().year == 1970
    folder.note_refresh(REFRESH)
    assert folder.refreshed() == REFRESH


def test_what_is_too_long_to_have_been_accepted_counts_as_nothing(folder: TrustedFolder) -> None:
    (folder.path / "timestamp.json").write_bytes(b"x" * 20_000)
    assert folder.read("timestamp") is None


def test_a_planted_link_is_not_followed(folder: TrustedFolder, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"1")
    (folder.path / "timestamp.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError):
        folder.read("timestamp")
