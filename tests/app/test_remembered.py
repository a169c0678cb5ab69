"""A person's word where no program runs the circuit: what is shown, what is kept, and how the next start takes it."""

from pathlib import Path

import pytest

from kensho.app.circuit_file import read_circuits, write_circuits
from kensho.app.remembered import KnownCircuit, look_at_circuits, tell_circuit
from kensho.base.events import CircuitForced, CircuitProbing, Event
from kensho.resilience.circuit import HardReason, Mode
from kensho.resilience.saved_circuit import SavedCircuit, resumed
from kensho.runtime.cache.graph_entry import read_boot_id
from kensho.testing.clock import VirtualClock

KEY = ("dialogue", "primary")


@pytest.fixture(autouse=True)
def marked(tmp_path: Path) -> None:
    """The folder is a store."""
    (tmp_path / "format").write_text("1")


def keep(store: Path, mode: Mode, *, boot: str | None = None) -> SavedCircuit:
    fingerprint = f"{read_boot_id() if boot is None else boot} | 1.31.1 2.0 | "
    hard = HardReason.START_LOOP if mode is Mode.HARD_OPEN else None
    kept = SavedCircuit(mode, 3, "start_loop: third failed start", fingerprint, hard)
    write_circuits(store / "circuits.json", {KEY: kept}, clock=VirtualClock())
    return kept


def tell(store: Path, mode: Mode | None) -> tuple[KnownCircuit, list[Event]]:
    events: list[Event] = []
    return tell_circuit(store, *KEY, mode, clock=VirtualClock(), emit=events.append), events


def kept(store: Path) -> SavedCircuit | None:
    return read_circuits(store / "circuits.json").get(KEY)


def test_an_engine_that_is_off_is_shown_with_what_helps(tmp_path: Path) -> None:
    assert look_at_circuits(tmp_path) == []
    keep(tmp_path, Mode.HARD_OPEN)
    (shown,) = look_at_circuits(tmp_path)
    assert (shown.model, shown.engine, shown.state, shown.is_loaded) == (*KEY, "HARD_OPEN", False)
    assert "stays off" in shown.next_step
    assert "look at the log" in shown.advice and "kensho circuit primary auto --model dialogue" in shown.advice


def test_after_a_boot_it_is_tried_by_itself_and_nothing_is_asked_of_a_person(tmp_path: Path) -> None:
    keep(tmp_path, Mode.HARD_OPEN, boot="another boot")
    (shown,) = look_at_circuits(tmp_path)
    assert "booted since" in shown.next_step and shown.advice == ""


@pytest.mark.parametrize("mode", [Mode.HARD_OPEN, Mode.FORCED_OPEN, Mode.FORCED_CLOSED, Mode.METRICS_ONLY])
def test_what_is_given_back_is_proven_at_the_next_start(tmp_path: Path, mode: Mode) -> None:
    before = keep(tmp_path, mode)
    told, (event,) = tell(tmp_path, None)
    assert isinstance(event, CircuitProbing) and event.from_state == mode
    assert "proven before it gets requests" in told.next_step
    state = resumed(kept(tmp_path), 100.0, before.fingerprint)
    assert (state.mode, state.trips, state.must_restart) == (Mode.OPEN, 0, True)


def test_a_circuit_that_is_neither_off_nor_forced_cannot_be_given_back(tmp_path: Path) -> None:
    assert tell(tmp_path, None)[0].state == "CLOSED"
    assert [path.name for path in tmp_path.iterdir()] == ["format"]
    before = keep(tmp_path, Mode.OPEN)
    told, events = tell(tmp_path, None)
    assert (told.state, events, kept(tmp_path)) == ("OPEN", [], before)


@pytest.mark.parametrize("mode", [Mode.FORCED_OPEN, Mode.FORCED_CLOSED, Mode.METRICS_ONLY])
def test_a_forced_circuit_begins_so_and_stays_so(tmp_path: Path, mode: Mode) -> None:
    told, (event,) = tell(tmp_path, mode)
    assert isinstance(event, CircuitForced) and told.state == mode
    assert resumed(kept(tmp_path), 0.0, "any machine").mode is mode
    assert tell(tmp_path, mode)[1] == [], "said again"
