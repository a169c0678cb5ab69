"""What a circuit waits for, how long, and what makes it wait longer."""

from typing import Any

import pytest

from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Began,
    BreakerSettings,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Failed,
    Force,
    HostFailed,
    HostReady,
    KillHost,
    Looked,
    Mode,
    Resumed,
    RunCanary,
    State,
    Tick,
)
from kensho.resilience.failure_class import FailureClass as F

SETTINGS = BreakerSettings()


class Life:
    """One circuit and its clock. An input's class gets the present generation."""

    def __init__(self) -> None:
        self.state: State = breaker.closed(0.0, "m")
        self.now = 0.0
        self.effects: list[Any] = []

    def tell(self, *events: Any) -> Mode:
        for event in events:
            told = event(self.state.generation) if isinstance(event, type) and event is not Tick else event
            told = told() if told is Tick else told
            self.state, effects = breaker.step(self.state, told, self.now, SETTINGS)
            self.effects += effects
        return self.state.mode

    def fail(self, failure: F) -> Mode:
        return self.tell(Failed(self.state.generation, failure))

    def canary(self, failure: F) -> Mode:
        return self.tell(CanaryFailed(self.state.generation, failure))

    def start(self, failure: F) -> Mode:
        return self.tell(HostFailed(self.state.generation, failure))

    def wait(self) -> float:
        """Until time changes something; how long that was."""
        assert self.state.until_s is not None
        waited_s = self.state.until_s - self.now
        self.now = self.state.until_s
        self.tell(Tick)
        return waited_s


def test_canaries_that_are_cancelled_at_once_come_once_a_second() -> None:
    life = Life()
    life.tell(Resumed())
    for _ in range(100):
        life.tell(CanaryCancelled)
        life.wait()
    assert life.now == pytest.approx(100.0)
    assert sum(isinstance(effect, RunCanary) for effect in life.effects) == 101
    assert life.state.mode is Mode.HALF_OPEN


def test_a_canary_that_ran_for_a_second_is_followed_at_once() -> None:
    life = Life()
    life.tell(Resumed(), Began)
    life.now = 3.0
    life.tell(CanaryCancelled)
    assert life.wait() == 0.0


def test_the_time_of_a_canary_and_of_a_start_runs_from_the_moment_they_have_the_engine() -> None:
    life = Life()
    life.fail(F.CRASH)
    assert life.state.until_s is None
    life.now = 1e4
    life.tell(Tick)
    assert life.state.mode is Mode.RESTARTING
    life.tell(Began)
    assert life.state.until_s == 1e4 + 120.0
    life.tell(HostReady)
    life.now = 2e4
    assert life.tell(Tick) is Mode.HALF_OPEN
    life.tell(Began)
    life.now = 2e4 + 4.9
    life.tell(Began)  # once more does not give it more time
    assert life.tell(Tick) is Mode.HALF_OPEN
    life.now = 2e4 + 5.0
    assert life.tell(Tick) is Mode.OPEN


def test_a_start_or_canary_of_another_time_does_not_begin() -> None:
    life = Life()
    life.fail(F.CRASH)
    old = Began(life.state.generation)
    life.tell(HostReady)
    before = life.state
    assert life.tell(old) is Mode.HALF_OPEN
    assert life.state == before
    life.tell(CanaryPassed, CanaryPassed)
    before = life.state
    life.tell(Began)
    assert life.state == before


WRONG, LATE, ODD = F.MISMATCH, F.HANG, F.UNKNOWN


@pytest.mark.parametrize(
    ("verdicts", "mode"),
    [
        ([WRONG, WRONG, WRONG], Mode.HARD_OPEN),
        ([WRONG, F.WRONG_NUMBERS, WRONG], Mode.HARD_OPEN),
        ([WRONG, ODD, WRONG, LATE, WRONG], Mode.OPEN),
        ([WRONG, WRONG, F.CRASH, WRONG], Mode.OPEN),
        ([WRONG, WRONG, F.SHORTAGE, WRONG], Mode.HARD_OPEN),  # that says nothing about the engine
    ],
)
def test_mismatches_count_in_a_row(verdicts: list[F], mode: Mode) -> None:
    life = Life()
    life.fail(F.CRASH)
    for verdict in verdicts:
        if life.state.mode is Mode.OPEN:
            life.wait()
        if life.state.mode is Mode.RESTARTING:
            life.tell(HostReady)
        life.canary(verdict)
    assert life.state.mode is mode
    if mode is Mode.HARD_OPEN:
        assert life.state.reason.endswith("in 3 processes in a row")


def test_a_device_that_is_listed_and_does_not_work_is_tried_less_and_less_often() -> None:
    life, waits = Life(), list[float]()
    life.fail(F.DEVICE_LOST)
    for _ in range(7):
        waits.append(life.wait())
        assert life.tell(Looked(life.state.generation, "m", is_device_there=True)) is Mode.RESTARTING
        life.tell(HostReady)
        assert life.canary(F.DEVICE_LOST) is Mode.HARD_OPEN
    assert waits == pytest.approx([60.0, 120.0, 240.0, 480.0, 900.0, 900.0, 900.0])


@pytest.mark.parametrize(("quiet_s", "wait_s"), [(599.0, 120.0), (600.0, 60.0)])
def test_ten_minutes_of_work_forget_how_often_the_device_was_lost(quiet_s: float, wait_s: float) -> None:
    life = Life()
    life.fail(F.DEVICE_LOST)
    life.wait()
    life.tell(Looked(life.state.generation, "m", is_device_there=True), HostReady, CanaryPassed, CanaryPassed)
    life.now += quiet_s
    life.fail(F.DEVICE_LOST)
    assert life.wait() == pytest.approx(wait_s)


def test_a_person_who_gives_it_back_makes_it_look_soon_again() -> None:
    life = Life()
    life.fail(F.DEVICE_LOST)
    for _ in range(3):
        life.wait()
    life.tell(Force(None))
    life.start(F.DEVICE_LOST)
    assert life.wait() == pytest.approx(60.0)


def test_ten_quiet_minutes_forget_the_trips_also_when_a_crash_ends_them() -> None:
    life = Life()
    for _ in range(2):
        life.fail(F.MISMATCH)
        life.wait()
        life.tell(CanaryPassed, CanaryPassed)
    life.now += 600.0
    life.fail(F.CRASH)
    life.tell(HostReady)
    life.canary(F.UNKNOWN)
    assert life.wait() == pytest.approx(60.0)


def test_starts_for_which_the_machine_has_no_room_are_tried_for_as_long_as_it_takes() -> None:
    life, waits = Life(), list[float]()
    life.fail(F.CRASH)
    for turn in range(10):
        life.start(F.SHORTAGE if turn % 2 else F.OUT_OF_MEMORY)
        assert life.state.mode is Mode.OPEN
        waits.append(life.wait())
        assert life.state.mode is Mode.RESTARTING
    assert waits == pytest.approx([5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 900.0, 900.0])
    assert life.state.failed_starts_s == ()
    life.tell(HostReady, CanaryPassed, CanaryPassed)
    life.fail(F.CRASH)
    life.start(F.SHORTAGE)
    assert life.state.reason == "the start failed: shortage; the machine has no room for it"
    assert life.wait() == pytest.approx(5.0)


def test_a_person_who_gives_it_back_makes_it_try_soon_again() -> None:
    life = Life()
    life.fail(F.CRASH)
    for _ in range(5):
        life.start(F.SHORTAGE)
        life.wait()
    life.start(F.SHORTAGE)
    life.tell(Force(Mode.FORCED_OPEN), Force(None))
    life.start(F.SHORTAGE)
    assert life.wait() == pytest.approx(5.0)


def test_two_failed_starts_and_wants_of_the_machine_between_them_are_no_loop() -> None:
    life = Life()
    life.fail(F.CRASH)
    for failure in (F.CRASH, F.SHORTAGE, F.CRASH, F.SHORTAGE):
        life.start(failure)
        life.wait()
    assert life.start(F.CRASH) is Mode.HARD_OPEN


def test_a_canary_for_which_the_machine_has_no_room_leaves_the_host_alone() -> None:
    life = Life()
    life.tell(Resumed())
    waits = []
    for _ in range(3):
        life.canary(F.SHORTAGE)
        assert life.state.reason == "the canary failed: shortage; the machine has no room for it"
        waits.append(life.wait())
        assert life.state.mode is Mode.HALF_OPEN
    assert waits == pytest.approx([5.0, 10.0, 20.0])
    assert not any(isinstance(effect, KillHost) for effect in life.effects)
