"""On virtual time: every piece is read again within the period, whatever the pieces, the disk and the clock do."""

from itertools import accumulate, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.delivery.schedule import IDLE_WAIT_S, SLICE_BYTES, ScrubState, next_slice, start_delay
from kensho.testing.clock import VirtualClock

PERIOD_S = 7 * 86400.0
SIZES = st.lists(st.integers(0, 4 << 20), min_size=1, max_size=40)


def scrub(sizes: list[int], *, until_s: float, rate: float, pauses: list[float]) -> list[list[float]]:
    """When each piece was read. `pauses`: the machine is off once in each, at a moment of its own, losing the slice."""
    clock, read = VirtualClock(), [[] for _ in sizes]
    state = ScrubState(list(accumulate(sizes)), 0, clock.wall_s(), PERIOD_S)
    end, steps = clock.wall_s() + until_s, 0
    while clock.wall_s() < end:
        steps += 1
        due = next_slice(state, clock.wall_s())
        if pauses and steps % 17 == 0:
            clock.sleep(pauses.pop())
            continue
        size = sum(sizes[due.first : due.last])
        assert size <= SLICE_BYTES or due.last - due.first == 1
        for index in range(due.first, due.last):
            read[index].append(clock.wall_s())
        spent = size / rate
        clock.sleep(spent + max(due.wait_s, spent))
        if due.last > due.first:
            state = ScrubState(state.ends, due.last, due.started_at, PERIOD_S)
        assert steps < 20_000, "it spins"
    return read


@settings(max_examples=25, deadline=None)
@given(SIZES, st.floats(20_000, 1e9), st.lists(st.floats(0, PERIOD_S / 100), max_size=2))
def test_no_byte_waits_longer_than_the_period(sizes: list[int], rate: float, pauses: list[float]) -> None:
    for times in scrub(sizes, until_s=3 * PERIOD_S, rate=rate, pauses=pauses):
        assert len(times) >= 5
        assert max(b - a for a, b in pairwise(times)) <= PERIOD_S


@settings(max_examples=25, deadline=None)
@given(SIZES)
def test_a_pass_is_spread_evenly_and_not_read_in_one_go(sizes: list[int]) -> None:
    state = ScrubState(list(accumulate(sizes)), 0, 0.0, PERIOD_S)
    half = PERIOD_S * 0.45 / 2
    done, now = 0, 0.0
    while now <= half and done < len(sizes):
        due = next_slice(ScrubState(state.ends, done, 0.0, PERIOD_S), now)
        done, now = due.last, now + due.wait_s
    total = sum(sizes)
    assert sum(sizes[: max(done - 1, 0)]) <= total / 2 + 1


def test_a_machine_that_was_off_for_long_goes_on_where_it_was_and_catches_up() -> None:
    state = ScrubState(list(accumulate([1 << 20] * 100)), 30, 0.0, PERIOD_S)
    due = next_slice(state, 10 * PERIOD_S)
    assert (due.first, due.wait_s, due.is_new_pass) == (30, 0.0, False)
    assert due.last == 46, "a slice, not all that is late"


def test_a_clock_set_back_neither_stops_nor_repeats_the_pass() -> None:
    state = ScrubState(list(accumulate([1 << 20] * 100)), 50, 1e9, PERIOD_S)
    due = next_slice(state, 1e6)
    assert (due.first, due.last) == (50, 51)
    later = next_slice(ScrubState(state.ends, 51, due.started_at, PERIOD_S), 1e6)
    assert later.first == later.last and 0 < later.wait_s <= IDLE_WAIT_S


def test_a_pass_that_is_done_waits_for_its_end_and_then_begins_again() -> None:
    ends = [10, 20]
    waiting = next_slice(ScrubState(ends, 2, 0.0, PERIOD_S), 60.0)
    assert (waiting.first, waiting.last, waiting.wait_s) == (2, 2, IDLE_WAIT_S)
    again = next_slice(ScrubState(ends, 2, 0.0, PERIOD_S), PERIOD_S)
    assert (again.first, again.started_at, again.is_new_pass) == (0, PERIOD_S, True)


def test_an_empty_store_is_looked_at_now_and_then() -> None:
    assert next_slice(ScrubState([], 0, 0.0, PERIOD_S), 5.0).wait_s == IDLE_WAIT_S


def test_the_start_of_a_pull_lies_in_the_jitter() -> None:
    assert [start_delay(600.0, lambda draw=draw: draw) for draw in (0.0, 0.5, 0.999)] == [0.0, 300.0, 599.4]
    assert start_delay(0.0, lambda: 0.9) == 0.0
