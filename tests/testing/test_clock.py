import pytest

from kensho.testing.clock import VirtualClock


def test_sleep_moves_both_clocks_and_returns_at_once() -> None:
    clock = VirtualClock(start_s=10.0, wall_s=100.0)
    clock.sleep(2.5)
    assert (clock.monotonic_s(), clock.wall_s()) == (12.5, 102.5)


def test_a_wall_step_leaves_monotonic_time_alone() -> None:
    clock = VirtualClock(start_s=10.0, wall_s=100.0)
    clock.step_wall(-50.0)
    assert (clock.monotonic_s(), clock.wall_s()) == (10.0, 50.0)


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        VirtualClock().sleep(-1.0)
