"""`kensho circuit` and `kensho status` where no daemon runs: what the store remembers of its engines."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kensho.app.circuit_file import write_circuits
from kensho.base.clock import SystemClock
from kensho.cli.main import main
from kensho.delivery.disk import RealDisk
from kensho.delivery.store import Store
from kensho.resilience.circuit import HardReason, Mode
from kensho.resilience.saved_circuit import SavedCircuit
from kensho.runtime.cache.graph_entry import read_boot_id
from kensho.server.daemon_lock import DaemonLock

OFF = SavedCircuit(Mode.HARD_OPEN, 0, "start_loop: third failed start", read_boot_id(), HardReason.START_LOOP)

Run = Callable[..., dict[str, object]]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the primary engine of one model is off."""
    Store.create(tmp_path / "store", disk=RealDisk()).close()
    write_circuits(tmp_path / "store" / "circuits.json", {("voice", "primary"): OFF}, clock=SystemClock())
    return tmp_path / "store"


@pytest.fixture
def kensho(store: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*command: str) -> dict[str, object]:
        code = main(["--json", "--store", str(store), *command])
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary["code"] == code
        return dict(summary)

    return run


def states(summary: dict[str, object]) -> list[tuple[str, str, str]]:
    return [(one["model"], one["engine"], one["state"]) for one in summary["circuits"]]  # type: ignore[attr-defined]


def test_what_is_remembered_is_shown_by_both_commands(
    kensho: Run, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["circuit"], ["circuit", "primary"], ["circuit", "--model", "voice"], ["status"]):
        assert states(kensho(*command)) == [("voice", "primary", "HARD_OPEN")]
    assert states(kensho("circuit", "standby")) == []
    for command in ("circuit", "status"):
        assert main(["--store", str(store), command]) == 0
        said = capsys.readouterr().out
        assert "engine primary of voice: HARD_OPEN (start_loop: third failed start)" in said
        assert "kensho circuit primary auto --model voice" in said


def test_an_engine_is_given_back_without_a_daemon(kensho: Run) -> None:
    told = kensho("circuit", "primary", "auto")
    assert (told["code"], told["model"], told["engine"], told["state"]) == (0, "voice", "primary", "HALF_OPEN")
    assert states(kensho("circuit")) == [("voice", "primary", "HALF_OPEN")]
    assert kensho("circuit", "primary", "open")["state"] == "FORCED_OPEN"


def test_what_cannot_be_given_back_is_said(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for has_changed in (True, False):
        assert main(["--store", str(store), "circuit", "primary", "auto"]) == 0
        told = capsys.readouterr()
        assert "HALF_OPEN" in told.out
        assert ("nothing has changed" in told.err) is not has_changed


def test_what_makes_no_sense_changes_nothing(kensho: Run, store: Path) -> None:
    before = (store / "circuits.json").read_bytes()
    wrong = {
        ("third", "auto"): (1, "config"),
        ("standby", "auto"): (1, "not_installed"),
        ("primary", "auto", "--model", "absent"): (1, "not_installed"),
        ("primary", "shut"): (2, "usage"),
        ("primary", "open", "--for", "0"): (2, "usage"),
        ("primary", "--for", "5"): (2, "usage"),
        ("primary", "open", "--for", "5"): (8, "no_daemon"),
    }
    for command, expected in wrong.items():
        told = kensho("circuit", *command)
        assert (told["code"], told["error"]) == expected, command
    assert (store / "circuits.json").read_bytes() == before


def test_a_daemon_that_does_not_take_the_command_is_not_bypassed(kensho: Run, store: Path) -> None:
    with DaemonLock(store, clock=SystemClock()):
        for command in ((), ("primary", "auto")):
            told = kensho("circuit", *command)
            assert (told["code"], told["error"]) == (8, "no_daemon")
            assert "does not take this command" in str(told["message"])
