import asyncio

import pytest
from guarding import EXPECTED, Bench, on_bench

from kensho.base.clock import Clock
from kensho.base.events import CanaryFinished, CircuitChanged, CircuitWouldOpen
from kensho.resilience.circuit import BreakerSettings, HardReason, Mode
from kensho.resilience.classify import FailureClass
from kensho.resilience.guard import Canary, hurry
from kensho.resilience.saved_circuit import SavedCircuit
from kensho.resilience.surroundings import MachineSeen, Surroundings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import Fault, ScriptedEngine
from kensho.testing.loop import run_virtual


class Drifting:
    """A clock that is slower than the loop's: by it every timer rings too early."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def monotonic_s(self) -> float:
        return self._clock.monotonic_s() * 0.99

    def wall_s(self) -> float:
        return self._clock.wall_s()

    def sleep(self, duration_s: float) -> None:
        self._clock.sleep(duration_s)


def test_an_engine_that_went_bad_without_dying_is_probed_but_not_restarted() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.MISMATCH)
        assert bench.mode is Mode.OPEN
        assert bench.guard.admit() is None
        await asyncio.sleep(61.0)
        assert bench.mode is Mode.CLOSED

    bench = on_bench(use)
    assert (bench.engine.starts, bench.engine.kills, bench.engine.streams) == (1, 0, 2)


def test_settings_shorten_the_way_back() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.refuse_starts(1)
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(0.6)
        assert bench.mode is Mode.CLOSED

    on_bench(use, restart_open_s=0.2, success_threshold=1)


def test_a_timer_that_rings_too_early_is_set_again() -> None:
    async def main() -> None:
        await bench.start()
        bench.fail(FailureClass.MISMATCH)
        await asyncio.sleep(60.1)
        assert bench.mode is Mode.OPEN
        await asyncio.sleep(1.0)
        assert bench.mode is Mode.CLOSED
        await bench.guard.close()

    time = VirtualClock()
    bench = Bench(ScriptedEngine("primary"), Drifting(time), BreakerSettings(), Canary([9], EXPECTED))
    run_virtual(main(), clock=time)


def test_every_canary_is_told_with_its_outcome_and_time() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.inject(Fault("nan", 1))
        bench.fail(FailureClass.MISMATCH)
        await asyncio.sleep(60.5)

    bench = on_bench(use)
    (told,) = [event for event in bench.events if isinstance(event, CanaryFinished)]
    assert told.outcome.startswith("failed: ")
    assert told.seconds == pytest.approx(0.03)
    assert [event.to_state for event in bench.events if isinstance(event, CircuitChanged)] == [
        "OPEN",
        "HALF_OPEN",
        "OPEN",
    ]


def test_an_engine_that_nobody_could_vouch_for_must_repeat_itself() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.inject(None, Fault("wrong", 0))
        bench.fail(FailureClass.MISMATCH)
        await asyncio.sleep(60.5)
        assert bench.mode is Mode.OPEN
        await asyncio.sleep(121.0)
        assert bench.mode is Mode.CLOSED

    on_bench(use, canary=Canary([9]))


class Memory:
    def __init__(self, circuit: SavedCircuit | None = None) -> None:
        self.circuit = circuit
        self.modes: list[Mode] = []

    def load(self, model: str, engine: str) -> SavedCircuit | None:
        return self.circuit

    def save(self, model: str, engine: str, circuit: SavedCircuit) -> None:
        self.circuit = circuit
        self.modes.append(circuit.mode)


def test_a_circuit_that_was_open_when_the_program_ended_is_started_and_proven_first() -> None:
    async def use(bench: Bench) -> None:
        assert bench.guard.admit() is None
        bench.guard.begin()
        await asyncio.sleep(1.0)
        assert bench.mode is Mode.CLOSED

    memory = Memory(SavedCircuit(Mode.OPEN, 2, "too slow", ""))
    bench = on_bench(use, surroundings=Surroundings(memory=memory))
    assert memory.modes == [Mode.RESTARTING, Mode.HALF_OPEN, Mode.CLOSED]
    assert (bench.engine.starts, bench.engine.streams) == (1, 2)


def test_hard_open_survives_a_restart_until_the_machine_has_changed() -> None:
    machine = ["boot 1"]

    async def use(bench: Bench) -> None:
        bench.guard.begin()
        await asyncio.sleep(30.0)
        assert bench.mode is Mode.HARD_OPEN
        machine[0] = "boot 2"
        await asyncio.sleep(150.0)
        assert bench.mode is Mode.CLOSED

    memory = Memory(SavedCircuit(Mode.HARD_OPEN, 0, "driver", "boot 1", HardReason.DRIVER_MISMATCH))
    look = lambda: MachineSeen(machine[0], is_device_there=True)  # noqa: E731
    on_bench(use, surroundings=Surroundings(look=look, memory=memory))


def test_after_the_machine_slept_a_canary_comes_before_the_next_user() -> None:
    asleep = [10.0]

    async def use(bench: Bench) -> None:
        await bench.start()
        permit = bench.guard.admit()
        assert permit is not None
        bench.guard.succeeded(permit)
        asleep[0] += 3.0
        assert bench.guard.admit() is None
        await asyncio.sleep(0.2)
        assert bench.guard.admit() is not None
        asleep[0] += 1.9
        assert bench.guard.admit() is not None

    bench = on_bench(use, asleep=asleep)
    assert bench.engine.streams == 2


def test_metrics_only_says_when_it_would_have_opened() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.guard.force(Mode.METRICS_ONLY, 60.0)
        bench.fail(FailureClass.MISMATCH)
        assert bench.mode is Mode.METRICS_ONLY
        assert bench.guard.admits
        await asyncio.sleep(61.0)
        assert bench.mode is Mode.CLOSED

    bench = on_bench(use)
    (told,) = [event for event in bench.events if isinstance(event, CircuitWouldOpen)]
    assert "too many failures" in told.message()


def test_each_change_has_a_name_and_a_level_of_its_own() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(1.0)
        bench.fail(FailureClass.MISMATCH)
        bench.guard.force(Mode.FORCED_OPEN)
        bench.guard.force(None)
        await asyncio.sleep(1.0)
        bench.fail(FailureClass.DEVICE_LOST)

    bench = on_bench(use)
    told = [(event.name, event.level) for event in bench.events if isinstance(event, CircuitChanged)]
    back = [("circuit.restarting", "warning"), ("circuit.probing", "info"), ("circuit.closed", "info")]
    forced = [("circuit.opened", "warning"), ("circuit.forced", "warning")]
    assert told == [*back, *forced, *back, ("circuit.hard_opened", "error")]


def test_when_both_are_open_the_one_that_can_be_tried_first_is_tried_at_once() -> None:
    async def use(bench: Bench) -> None:
        other = Bench(ScriptedEngine("standby"), bench.clock, BreakerSettings(), Canary([9], EXPECTED))
        for one in (bench, other):
            await one.start()
            one.fail(FailureClass.MISMATCH)
            await asyncio.sleep(1.0)
        assert not bench.guard.is_coming
        hurry([bench.guard, other.guard])
        assert (bench.mode, other.mode) == (Mode.HALF_OPEN, Mode.OPEN)
        assert bench.guard.is_coming
        await asyncio.sleep(0.5)
        hurry([bench.guard, other.guard])
        assert (bench.mode, other.mode) == (Mode.CLOSED, Mode.OPEN)
        await other.guard.close()

    on_bench(use)


def test_one_that_has_just_come_back_is_preferred_by_few() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        assert not bench.guard.prefers_others()
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(1.0)
        bench.draw = 0.3
        assert bench.guard.prefers_others()
        bench.draw = 0.05
        assert not bench.guard.prefers_others()
        await asyncio.sleep(5.0)
        bench.draw = 0.3
        assert not bench.guard.prefers_others()

    on_bench(use)
