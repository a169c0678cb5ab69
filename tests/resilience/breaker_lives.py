"""Short lives of a breaker: what it is after these events."""

from typing import Any

from breaker_walk import SETTINGS

from kensho.resilience import breaker
from kensho.resilience.circuit import Admit, Failed, HostReady, RunCanary, State
from kensho.resilience.failure_class import FailureClass as F


def run(state: State, *events: Any, now: float = 1000.0) -> tuple[State, list[Any]]:
    effects: list[Any] = []
    for event in events:
        state, more = breaker.step(state, event, now, SETTINGS)
        effects += more
    return state, effects


def half_open() -> tuple[State, RunCanary]:
    state, _ = run(breaker.closed(1000.0), Admit(), Failed(1, F.CRASH))
    state, effects = run(state, HostReady(state.generation))
    (canary,) = [effect for effect in effects if isinstance(effect, RunCanary)]
    return state, canary
