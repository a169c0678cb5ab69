import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kensho.app.circuit_file import CircuitFile, read_circuits, write_circuits
from kensho.app.machine_state import boot_s, look
from kensho.base.clock import SystemClock
from kensho.base.events import Event
from kensho.resilience.circuit import HardReason, Mode
from kensho.resilience.saved_circuit import SavedCircuit
from kensho.runtime.cache.pins import FileLock
from kensho.testing.clock import VirtualClock

OPEN = SavedCircuit(Mode.OPEN, 3, "too many failures", "boot 1")
OFF = SavedCircuit(Mode.HARD_OPEN, 0, "device_lost: gone", "boot 1", HardReason.DEVICE_LOST)
CLOSED = SavedCircuit(Mode.CLOSED, 0, "canaries passed: 2", "boot 1")


@pytest.fixture(autouse=True)
def marked(tmp_path: Path) -> None:
    """The folder is a store."""
    (tmp_path / "format").write_text("1")


def file_in(folder: Path, events: list[Event] | None = None) -> CircuitFile:
    return CircuitFile(
        folder / "circuits.json", clock=VirtualClock(), emit=(events if events is not None else []).append
    )


def test_what_is_saved_is_there_after_a_restart(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    file.save("dialogue", "primary", OPEN)
    assert file.load("dialogue", "primary") == OPEN
    file.save("dialogue", "standby", OFF)
    file.close()
    again = file_in(tmp_path)
    assert (again.load("dialogue", "primary"), again.load("dialogue", "standby")) == (OPEN, OFF)
    assert again.load("other", "primary") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuits.json", "format"]


def test_a_healthy_store_has_no_file(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    file.save("dialogue", "primary", CLOSED)
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == ["format"]


def test_a_circuit_that_closed_is_forgotten_and_others_are_not(tmp_path: Path) -> None:
    file = file_in(tmp_path)
    file.save("dialogue", "primary", OPEN)
    file.save("dialogue", "standby", OFF)
    file.close()
    other = file_in(tmp_path)
    other.save("dialogue", "primary", CLOSED)
    other.close()
    assert list(json.loads((tmp_path / "circuits.json").read_text())["circuits"]) == ["dialogue/standby"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\x00",
        b"[1]",
        b'{"format": 2, "circuits": {"dialogue/primary": {}}}',
        b'{"format": 1, "circuits": [1]}',
        b'{"format": 1, "circuits": {"dialogue/primary": {"mode": "SLEEPING"}}}',
        b'{"format": 1, "circuits": {"dialogue/primary": 7}}',
        b"[" * 100_000,
        b'{"format": 1, "circuits": {"dialogue/primary": {"mode": "OPEN", "trips": "3"}}}',
    ],
)
def test_a_file_that_makes_no_sense_is_as_good_as_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "circuits.json").write_bytes(data)
    file = file_in(tmp_path)
    assert file.load("dialogue", "primary") is None
    file.save("dialogue", "primary", OPEN)
    file.close()
    assert file_in(tmp_path).load("dialogue", "primary") == OPEN


def test_a_disk_that_refuses_is_told_once_a_write_and_changes_nothing_else(tmp_path: Path) -> None:
    events: list[Event] = []
    (tmp_path / "circuits.json").mkdir()
    file = file_in(tmp_path, events)
    file.save("dialogue", "primary", OPEN)
    file.close()
    (told,) = events
    assert "cannot be kept" in told.message()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circuits.json", "format"]


def test_nothing_is_made_where_a_store_has_been(tmp_path: Path) -> None:
    """Its disk is not mounted now: what was written would lie below it when it is back."""
    (tmp_path / "format").unlink()
    for folder in (tmp_path, tmp_path / "missing"):
        events: list[Event] = []
        file = file_in(folder, events)
        file.save("dialogue", "primary", OPEN)
        file.close()
        (told,) = events
        assert f"no store in {folder}" in told.message()
    assert list(tmp_path.iterdir()) == []


def test_programs_that_write_in_the_same_instant_forget_nothing_of_each_other(tmp_path: Path) -> None:
    def write(program: int) -> None:
        for model in range(10):
            write_circuits(tmp_path / "circuits.json", {(f"{program}-{model}", "primary"): OPEN}, clock=SystemClock())

    with ThreadPoolExecutor(4) as programs:
        list(programs.map(write, range(4)))
    assert len(read_circuits(tmp_path / "circuits.json")) == 40


def test_a_writer_that_was_stopped_in_the_middle_holds_up_nobody_for_long(tmp_path: Path) -> None:
    lock = FileLock.on_folder(tmp_path)
    assert lock
    events: list[Event] = []
    file = file_in(tmp_path, events)
    file.save("dialogue", "primary", OPEN)
    file.close()
    (told,) = events
    assert "another program is writing" in told.message()
    assert [path.name for path in tmp_path.iterdir()] == ["format"]
    lock.close()
    file.save("dialogue", "primary", OPEN)
    file.close()
    assert file.load("dialogue", "primary") == OPEN


def test_the_fingerprint_changes_with_boot_engine_and_driver(tmp_path: Path) -> None:
    boot, driver = tmp_path / "proc/sys/kernel/random/boot_id", tmp_path / "proc/driver/nvidia/version"
    boot.parent.mkdir(parents=True)
    driver.parent.mkdir(parents=True)
    seen = set()
    for first, second, engine in [("a", "550", "1.31"), ("b", "550", "1.31"), ("b", "560", "1.31"), ("b", "560", "2")]:
        boot.write_text(first)
        driver.write_text(f"NVRM version: {second}\nGCC 12\n")
        seen.add(look(engine, tmp_path).fingerprint)
    assert len(seen) == 4
    assert not look("1.31", tmp_path).is_device_there
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert look("1.31", tmp_path).is_device_there


def test_the_machine_was_started_before_its_monotonic_clock_and_does_not_sleep_between_two_readings() -> None:
    before_s, after_s = (boot_s() - SystemClock.monotonic_s() for _ in range(2))
    assert before_s >= -1e-3
    assert abs(after_s - before_s) < 0.1
