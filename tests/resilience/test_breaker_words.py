"""What is told of a circuit: each change in words with what happens next, and the figures of its status."""

from typing import Any

import pytest
from breaker_lives import half_open, run
from breaker_walk import SETTINGS

from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Admit,
    Began,
    CanaryFailed,
    CanaryPassed,
    Changed,
    Failed,
    Force,
    HostFailed,
    HostReady,
    HostUnkillable,
    Hurry,
    Looked,
    Mode,
    Resumed,
    State,
    Succeeded,
    Tick,
)
from kensho.resilience.circuit_status import circuit_status
from kensho.resilience.failure_class import FailureClass as F


def told(*events: Any, state: State | None = None) -> tuple[str, str]:
    """The last change that these events make, in words. A function among them gets the state."""
    state = state or breaker.closed(1000.0)
    changes: list[Changed] = []
    for event in events:
        state, effects = run(state, event(state) if callable(event) else event)
        changes += [effect for effect in effects if isinstance(effect, Changed)]
    return changes[-1].reason, changes[-1].next_step


def failed(kind: F) -> Any:
    return lambda state: Failed(state.generation, kind)


def ready(state: State) -> HostReady:
    return HostReady(state.generation)


def passed(state: State) -> CanaryPassed:
    return CanaryPassed(state.generation)


def start_failed(state: State) -> HostFailed:
    return HostFailed(state.generation, F.UNKNOWN)


CRASHED = (failed(F.CRASH),)
PERSON = "a person said so"
GIVE_BACK = Force(None)

SAID = {
    "failures": (
        (failed(F.UNKNOWN), failed(F.UNKNOWN), failed(F.UNKNOWN)),
        ("too many failures in a row, the last: unknown", "a canary in 60.0 s"),
    ),
    "crash": (CRASHED, ("a request failed: crash", "starting it, then a canary")),
    "fourth crash": (
        (failed(F.CRASH), ready, passed, passed) * 3 + CRASHED,
        ("a request failed: crash; it is the 4th within 600 s", "a new start in 5.0 s"),
    ),
    "memory": (
        (failed(F.OUT_OF_MEMORY), failed(F.OUT_OF_MEMORY)),
        ("no memory, twice within 60 s", "starting it, then a canary"),
    ),
    "up": ((*CRASHED, ready), ("the host is up", "canaries that must pass: 2")),
    "back": ((*CRASHED, ready, passed, passed), ("canaries passed: 2", "requests go to it again, by and by")),
    "no start": ((*CRASHED, start_failed), ("the start failed: unknown", "a new start in 5.0 s")),
    "bad canary": (
        (*CRASHED, ready, lambda state: CanaryFailed(state.generation, F.UNKNOWN)),
        ("the canary failed: unknown", "a canary in 60.0 s"),
    ),
    "unkillable": (
        (HostUnkillable(),),
        (
            "unkillable: its process does not react to SIGKILL",
            "a look at the machine in 60 s; reboot: a process of it does not react to SIGKILL",
        ),
    ),
    "lost at start": (
        (*CRASHED, lambda state: HostFailed(state.generation, F.DEVICE_LOST)),
        (
            "device_lost: the start failed: device_lost",
            "a look at the machine in 60 s; reset or reseat the device, or reboot",
        ),
    ),
    "lost": (
        (failed(F.DEVICE_LOST),),
        (
            "device_lost: a request failed: device_lost",
            "a look at the machine in 60 s; reset or reseat the device, or reboot",
        ),
    ),
    "lost at the canary": (
        (*CRASHED, ready, lambda state: CanaryFailed(state.generation, F.DRIVER_MISMATCH)),
        (
            "driver_mismatch: the canary failed: driver_mismatch",
            "a look at the machine in 60 s; reboot: the driver was updated and its old part still runs",
        ),
    ),
    "slept": ((Resumed(),), ("the machine slept", "canaries that must pass: 2")),
    "hurry": ((failed(F.MISMATCH), Hurry()), ("no other engine can answer", "canaries that must pass: 2")),
    "forced open": ((Force(Mode.FORCED_OPEN),), (PERSON, "it gets no requests until a person gives it back")),
    "forced closed": (
        (Force(Mode.FORCED_CLOSED, 90.0),),
        (PERSON, "it gets requests whatever happens for 90 s"),
    ),
    "metrics": (
        (Force(Mode.METRICS_ONLY),),
        (PERSON, "it gets requests, and says when it would have opened until a person gives it back"),
    ),
    "given back": (
        (Force(Mode.FORCED_OPEN), GIVE_BACK),
        ("a person gave it back", "starting it, then a canary"),
    ),
    "changed": (
        (HostUnkillable(), lambda state: Looked(state.generation, "new", is_device_there=False)),
        ("the machine or the engine has changed", "starting it, then a canary"),
    ),
    "device back": (
        (failed(F.DEVICE_LOST), lambda state: Looked(state.generation, "", is_device_there=True)),
        ("the device is there again", "starting it, then a canary"),
    ),
}


@pytest.mark.parametrize(("events", "words"), SAID.values(), ids=SAID)
def test_each_change_is_told_in_words_with_what_happens_next(events: Any, words: tuple[str, str]) -> None:
    assert told(*events) == words


def test_what_time_does_is_told_in_words() -> None:
    state, _ = run(breaker.closed(1000.0), Failed(1, F.MISMATCH))
    assert run(state, Tick(), now=1060.0)[0].reason == "the wait is over"
    assert breaker.closed(1000.0).reason == "no failure seen"
    state, _ = run(breaker.closed(1000.0), Failed(1, F.CRASH))
    state, _ = run(state, Began(state.generation))
    assert run(state, Tick(), now=1120.0)[0].reason == "no start within 120 s"
    state, _ = half_open()
    state, _ = run(state, Began(state.generation))
    assert run(state, Tick(), now=1005.0)[0].reason == "the canary failed: hang"
    state, _ = run(breaker.closed(1000.0), Force(Mode.FORCED_OPEN, 3.0))
    assert run(state, Tick(), now=1003.0)[0].reason == "the time of a person's word is over"


def test_the_last_of_three_failed_starts_and_mismatches_says_how_many_there_were() -> None:
    state, now = run(breaker.closed(1000.0), Failed(1, F.CRASH))[0], 1000.0
    for _ in range(3):
        state, _ = breaker.step(state, HostFailed(state.generation), now, SETTINGS)
        reason, now = state.reason, now + 10.0
        state, _ = breaker.step(state, Tick(), now, SETTINGS)
    assert reason == "start_loop: 3 starts failed within 600 s, the last: the start failed: crash"
    state, now = half_open()[0], 1000.0
    for _ in range(3):
        state, _ = breaker.step(state, CanaryFailed(state.generation, F.MISMATCH), now, SETTINGS)
        reason, now = state.reason, now + 900.0
        state, _ = breaker.step(state, Tick(), now, SETTINGS)
        state, _ = breaker.step(state, HostReady(state.generation), now, SETTINGS)
    assert reason == "output_mismatch: the canary failed: mismatch, in 3 processes in a row"


def test_the_status_has_the_figures_of_a_status_page() -> None:
    state, _ = run(breaker.closed(990.0), Admit(), Succeeded(1, 0.02), Admit(), Failed(1, F.MISMATCH), Admit())
    seen = circuit_status(state, 1010.0)
    assert (seen.mode, seen.admits) == (Mode.OPEN, False)
    assert seen.leaves_in_s == pytest.approx(50.0)
    assert (seen.last_success_ago_s, seen.last_failure_ago_s, seen.in_mode_s) == (10.0, 10.0, 10.0)
    fields = seen.as_fields()
    assert fields["state"] == "OPEN"
    assert fields["reason"] == "too many failures in a row, the last: mismatch"
    assert (fields["calls"], fields["rejected"], fields["successes"], fields["failures"]) == (2, 1, 1, 1)
    assert (fields["fallback_for_s"], fields["opened"], fields["trips"], fields["baseline_ms"]) == (50.0, 1, 1, 20.0)
