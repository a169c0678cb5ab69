"""Cold files are asked for in order, warm ones and those of devices that read far ahead are not."""

import os
from pathlib import Path

import pytest

from kensho.runtime.system import read_ahead as module
from kensho.runtime.system.read_ahead import FAR_KIB, WINDOW_BYTES, read_ahead, reads_far

Calls = list[tuple[str, int, int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the kernel was asked for: (file, offset, size). Every file is cold."""
    calls: Calls = []

    def fadvise(descriptor: int, offset: int, size: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        calls.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, offset, size))

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    monkeypatch.setattr(module, "_is_in_memory", lambda *_: False)
    return calls


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    sizes = {"graph.onnx": 100, "weights.bin": 2 * WINDOW_BYTES + 1}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(b"x" * size)
    return [tmp_path / name for name in sizes]


def test_files_are_asked_for_in_order_window_by_window_to_their_last_byte(
    files: list[Path], asked: Calls, tmp_path: Path
) -> None:
    assert read_ahead(files, sysfs=tmp_path) == 100 + 2 * WINDOW_BYTES + 1
    assert asked == [
        ("graph.onnx", 0, 100),
        ("weights.bin", 0, WINDOW_BYTES),
        ("weights.bin", WINDOW_BYTES, WINDOW_BYTES),
        ("weights.bin", 2 * WINDOW_BYTES, 1),
    ]


def test_it_stops_before_the_next_window_when_nobody_wants_it_any_more(
    files: list[Path], asked: Calls, tmp_path: Path
) -> None:
    assert read_ahead(files, goes_on=lambda: len(asked) < 2, sysfs=tmp_path) == 100 + WINDOW_BYTES


def test_what_is_not_there_or_no_file_is_left_out(files: list[Path], asked: Calls, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read_ahead([tmp_path / "absent", tmp_path / "pipe", tmp_path, files[0]], sysfs=tmp_path)
    assert asked[-1] == ("graph.onnx", 0, 100)


def test_files_in_memory_are_not_asked_for(files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: pytest.fail("they were written a moment ago"))
    assert read_ahead(files, sysfs=tmp_path) == 0


@pytest.mark.parametrize("place", ["class/bdi/{}/read_ahead_kb", "dev/block/{}/queue/read_ahead_kb"])
def test_a_device_that_reads_far_ahead_is_left_alone(
    place: str, files: list[Path], asked: Calls, tmp_path: Path
) -> None:
    device = files[0].stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    setting = tmp_path / place.format(number if "bdi" in place else f"{number}-disk")
    setting.parent.mkdir(parents=True)
    if "bdi" not in place:  # sysfs has a link from the number to the partition, whose parent is the disk
        (setting.parents[1] / "partition").mkdir()
        (tmp_path / "dev/block" / number).symlink_to(setting.parents[1] / "partition")
    setting.write_text(f"{FAR_KIB}\n")
    assert reads_far(device, tmp_path)
    assert read_ahead(files, sysfs=tmp_path) == 0
    setting.write_text("128\n")
    assert not reads_far(device, tmp_path)
    setting.write_text("nonsense")
    assert not reads_far(device, tmp_path)


def test_a_cold_file_is_in_memory_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(os.urandom(4 * WINDOW_BYTES))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if module._is_in_memory(descriptor, 4 * WINDOW_BYTES):
            pytest.skip("this file system keeps no other copy than the one in memory")
        assert read_ahead([path], sysfs=tmp_path) == 4 * WINDOW_BYTES
        path.read_bytes()
        assert module._is_in_memory(descriptor, 4 * WINDOW_BYTES)
    finally:
        os.close(descriptor)
