"""A model that is installed and whole, and cannot answer since its engines are off: what is said of it."""

from pathlib import Path

import pytest

from kensho.app import Kensho
from kensho.app.circuit_file import write_circuits
from kensho.app.doctor import examine
from kensho.app.engines_out import engines_out
from kensho.app.status import EnginesOut, ModelStatus, make_status, with_engines_out
from kensho.base.structs import replace
from kensho.resilience.circuit import HardReason, Mode
from kensho.resilience.saved_circuit import SavedCircuit
from kensho.runtime.cache.graph_entry import read_boot_id
from kensho.settings import Settings
from kensho.testing.client import FIRST, NOW, Client, model_files
from kensho.testing.clock import VirtualClock
from kensho.testing.repository import SimulatedRepository

READY = ModelStatus("voice", "1.0", None, "ready", 100)
DAMAGED = replace(READY, model="other", state="damaged")
OUT = EnginesOut("primary is FORCED_OPEN", "kensho circuit primary auto --model voice", "model small answers")


def keep(store: Path, **modes: Mode) -> None:
    """Circuits of the model voice."""
    hard = HardReason.START_LOOP
    circuits = {
        ("voice", engine): SavedCircuit(
            mode, 0, "why", f"{read_boot_id()} | ", hard if mode is Mode.HARD_OPEN else None
        )
        for engine, mode in modes.items()
    }
    write_circuits(store / "circuits.json", circuits, clock=VirtualClock())


def test_a_model_of_which_no_engine_takes_requests_is_degraded_however_whole_it_is() -> None:
    status = with_engines_out(make_status((READY,), (), None), {"voice": OUT})
    (model,) = status.models
    assert (status.state, model.state, model.instead, model.ends) == ("degraded", "degraded", OUT.instead, OUT.ends)
    assert "no engine takes its requests: primary is FORCED_OPEN" in status.sentence


def test_what_is_damaged_stays_so_and_of_others_nothing_is_said() -> None:
    status = make_status((READY, DAMAGED), (), None)
    assert with_engines_out(status, {}) is status
    assert with_engines_out(status, {"elsewhere": OUT}) is status
    assert with_engines_out(make_status((DAMAGED,), (), None), {"other": OUT}).state == "damaged"


def test_only_where_both_engines_are_off_a_model_is_out(tmp_path: Path) -> None:
    def out() -> dict[str, EnginesOut]:
        return engines_out(tmp_path, None, fallback_of={"voice": "small"}.get)

    (tmp_path / "format").write_text("1")
    assert out() == {}
    keep(tmp_path, primary=Mode.FORCED_OPEN, standby=Mode.OPEN)
    assert out() == {}
    keep(tmp_path, standby=Mode.HARD_OPEN)
    assert out() == {
        "voice": EnginesOut(
            "primary is FORCED_OPEN (why), standby is HARD_OPEN (why)",
            "kensho circuit primary auto --model voice",
            "model small answers",
        )
    }


@pytest.mark.store
def test_status_and_doctor_say_what_keeps_a_model_from_answering(tmp_path: Path) -> None:
    world = SimulatedRepository(tmp_path / "world", now=NOW)
    world.publish("voice", "1.0", model_files(FIRST))
    client = Client(tmp_path / "store", world)
    client.pull(world.source())
    with Kensho(Settings(store=client.root, network=False), clock=client.clock, has_log=False) as app:
        assert app.status().state == "ready"
        keep(client.root, primary=Mode.FORCED_OPEN, standby=Mode.HARD_OPEN)
        assert app.status().state == "degraded"
        checks = {check.name: check for check in examine(app)}
        assert not checks["models"].is_ok and "kensho circuit primary auto" in checks["models"].advice
        assert not checks["engines"].is_ok and "standby of voice is HARD_OPEN (why)" in checks["engines"].found
