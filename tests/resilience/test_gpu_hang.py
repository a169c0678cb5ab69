"""The GPU hangs for 300 of 600 s in virtual time: who touches it, and who waits (issue 6, proof table).

The figures of the design simulation are the bars: at most 7 requests on the hanging engine, none later than 2 s, and no
user's request as a probe, at 8 requests a second with a standby that can do 10. bench/hang.py has the peers beside it.
"""

import functools

import pytest

from kensho.base.events import CircuitChanged, Event
from kensho.base.structs import Struct
from kensho.testing.hang import Hang, Seen, kensho, play_hang, standby_alone

pytestmark = pytest.mark.real
HANG = Hang()
SEEDS = [1, 2]


class Played(Struct):
    seen: Seen
    circuit: list[str]


@functools.cache
def played(seed: int) -> Played:
    events: list[Event] = []
    seen = play_hang(HANG, kensho(events.append), seed=seed)
    return Played(seen, [event.to_state for event in events if isinstance(event, CircuitChanged)])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gpu_that_hangs_for_five_minutes_meets_few_requests_and_nobody_is_without_an_answer(seed: int) -> None:
    seen = played(seed).seen
    assert seen.came > 4_500
    assert (len(seen.answered), seen.failed) == (seen.came, [])
    assert 1 <= seen.touched <= 7
    assert seen.engines(HANG.begins_s + 2.0, HANG.ends_s) == {"standby"}


@pytest.mark.parametrize("seed", SEEDS)
def test_nobody_waits_long_while_the_gpu_hangs(seed: int) -> None:
    assert played(seed).seen.late == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_no_users_request_is_a_probe_and_the_engine_comes_back_by_itself(seed: int) -> None:
    seen, circuit = played(seed).seen, played(seed).circuit
    assert seen.probes == 0
    assert 1 <= seen.canaries <= 5
    assert circuit[-1] == "CLOSED"
    assert seen.back_after_s < HANG.until_s - HANG.ends_s
    assert "primary" in seen.engines(HANG.until_s - 10.0, HANG.until_s)


def test_the_standby_alone_has_room_for_all_requests() -> None:
    """Without which the bars would say nothing about the breaker."""
    assert play_hang(HANG, standby_alone(), seed=1).late == 0
