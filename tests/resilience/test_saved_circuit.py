import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.structs import replace
from kensho.resilience import breaker
from kensho.resilience.circuit import (
    BreakerSettings,
    Failed,
    Force,
    HardReason,
    HostReady,
    LookAtMachine,
    Mode,
    StartHost,
    State,
    Tick,
)
from kensho.resilience.failure_class import FailureClass as F
from kensho.resilience.saved_circuit import SavedCircuit, from_json, resumed, saved

SETTINGS = BreakerSettings()


def kept(mode: Mode, *, trips: int = 2, hard: HardReason | None = None) -> SavedCircuit:
    return SavedCircuit(mode, trips, "because", "boot 1", hard)


def begun(state: State) -> tuple[State, list[object]]:
    state, effects = breaker.step(state, Tick(), 50.0, SETTINGS)
    return state, list(effects)


@pytest.mark.parametrize("mode", [Mode.OPEN, Mode.HALF_OPEN, Mode.RESTARTING])
def test_an_engine_that_was_doubted_is_started_and_proven_before_it_gets_requests(mode: Mode) -> None:
    state = resumed(kept(mode), 50.0, "boot 1")
    assert state.mode is not Mode.CLOSED
    state, effects = begun(state)
    assert state.mode is Mode.RESTARTING
    assert any(isinstance(effect, StartHost) for effect in effects)
    state, _ = breaker.step(state, HostReady(state.generation), 51.0, SETTINGS)
    assert (state.mode, state.trips) == (Mode.HALF_OPEN, 2)
    assert begun(resumed(kept(mode), 50.0, "boot 1"))[0].reason == f"it was {mode} when the program ended: because"


def test_programs_that_end_before_it_is_proven_do_not_make_the_reason_longer() -> None:
    circuit = kept(Mode.OPEN)
    for _ in range(3):
        state, _ = begun(resumed(circuit, 50.0, "boot 1"))
        circuit = saved(state)
        assert (circuit.mode, circuit.reason) == (Mode.RESTARTING, "it was OPEN when the program ended: because")


def test_one_that_was_healthy_or_unknown_begins_closed() -> None:
    for circuit in (None, kept(Mode.CLOSED)):
        assert resumed(circuit, 50.0, "boot 1") == breaker.closed(50.0, "boot 1")


def test_hard_open_stays_on_the_same_machine_and_looks_at_it_at_once() -> None:
    off = kept(Mode.HARD_OPEN, hard=HardReason.DRIVER_MISMATCH)
    state = resumed(off, 50.0, "boot 1")
    assert (state.mode, state.hard, state.reason) == (Mode.HARD_OPEN, HardReason.DRIVER_MISMATCH, "because")
    state, effects = begun(state)
    assert isinstance(effects[-1], LookAtMachine)


def test_hard_open_ends_with_a_reboot_or_another_version_and_so_does_the_doubling() -> None:
    state, _ = begun(resumed(kept(Mode.HARD_OPEN, hard=HardReason.DRIVER_MISMATCH), 50.0, "boot 2"))
    assert (state.mode, state.trips, state.fingerprint) == (Mode.RESTARTING, 0, "boot 2")


@pytest.mark.parametrize("hard", HardReason)
def test_another_form_of_the_graph_is_no_reason_to_forget_what_the_machine_has(hard: HardReason) -> None:
    off = replace(kept(Mode.HARD_OPEN, hard=hard), form="mapped")
    assert resumed(off, 50.0, "boot 1", "mapped").mode is Mode.HARD_OPEN
    expected = Mode.OPEN if hard is HardReason.OUTPUT_MISMATCH else Mode.HARD_OPEN
    assert resumed(off, 50.0, "boot 1", "packed").mode is expected
    assert resumed(off, 50.0, "boot 2", "mapped").mode is Mode.OPEN


def test_a_persons_word_stays_unless_it_was_for_a_time() -> None:
    state = breaker.closed(0.0, "boot 1")
    for_ever, _ = breaker.step(state, Force(Mode.FORCED_OPEN), 0.0, SETTINGS)
    for_now, _ = breaker.step(state, Force(Mode.FORCED_OPEN, 60.0), 0.0, SETTINGS)
    assert resumed(saved(for_ever), 50.0, "boot 2").mode is Mode.FORCED_OPEN
    assert begun(resumed(saved(for_now), 50.0, "boot 1"))[0].mode is Mode.RESTARTING


@pytest.mark.parametrize("failure", [F.MISMATCH, F.CRASH, F.DEVICE_LOST])
def test_what_is_saved_comes_back_through_json(failure: F) -> None:
    state, _ = breaker.step(breaker.closed(0.0, "boot 1"), Failed(1, failure), 0.0, SETTINGS)
    circuit = saved(state, "mapped")
    assert circuit.form == "mapped"
    assert from_json(json.loads(json.dumps(circuit.as_json()))) == circuit
    assert (circuit.mode, circuit.trips, circuit.hard) == (state.mode, state.trips, state.hard)


def test_a_reason_of_any_length_is_kept_short() -> None:
    assert len(saved(State(Mode.OPEN, 1, 0.0, "x" * 10_000)).reason) == 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.sampled_from([*Mode, *HardReason]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mode", "trips", "reason", "fingerprint", "hard", "form"]), inner, max_size=5
        )
    ),
    max_leaves=8,
)


@settings(max_examples=40)
@given(JSON)
def test_nothing_in_a_file_makes_it_raise(value: object) -> None:
    circuit = from_json(value)
    if circuit is not None:
        assert (circuit.hard is not None) is (circuit.mode is Mode.HARD_OPEN)
        begun(resumed(circuit, 50.0, "boot 1"))
