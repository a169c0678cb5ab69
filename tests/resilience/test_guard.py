import asyncio
from typing import Any

import pytest

from kensho.base.clock import Clock
from kensho.base.errors import Damaged, EngineCrashed
from kensho.base.events import CanaryFinished, CircuitChanged, Event
from kensho.base.inference import Sampling
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.classify import FailureClass
from kensho.resilience.guard import Canary, Guard
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import Fault, ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

EXPECTED = expected_ids([9], Sampling(max_tokens=3))


class DamagedEngine(ScriptedEngine):
    """Its graph is damaged: `start` raises an error that is no EngineError."""

    async def start(self) -> None:
        raise Damaged("block 3 of the graph is damaged", advice="compile again")


class SlowToDie(ScriptedEngine):
    """Its kernel needs a second to reap it."""

    async def kill(self) -> None:
        await asyncio.sleep(1.0)
        await super().kill()


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


class Bench:
    def __init__(self, engine: ScriptedEngine, clock: Clock, settings: BreakerSettings, canary: Canary) -> None:
        self.engine = engine
        self.events: list[Event] = []
        self.guard = Guard(
            engine,
            canary,
            model="m",
            settings=settings,
            clock=clock,
            rng=lambda: 0.5,
            emit=self.events.append,
            on_change=lambda: None,
        )

    async def start(self) -> None:
        async with self.guard.lane:
            await self.guard.start()

    def fail(self, failure: FailureClass) -> None:
        permit = self.guard.admit()
        assert permit is not None
        self.guard.failed(permit, failure)

    @property
    def mode(self) -> Mode:
        return self.guard.snapshot().mode


def on_bench(use: Any, *, engine: ScriptedEngine | None = None, canary: Canary | None = None, **settings: Any) -> Bench:
    async def main() -> None:
        try:
            await use(bench)
        finally:
            await bench.guard.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    clock = VirtualClock()
    bench = Bench(
        engine or ScriptedEngine("primary"), clock, BreakerSettings(**settings), canary or Canary([9], EXPECTED)
    )
    run_virtual(main(), clock=clock)
    return bench


def test_an_engine_that_went_bad_without_dying_is_probed_but_not_restarted() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.TIMEOUT)
        assert bench.mode is Mode.OPEN
        assert bench.guard.admit() is None
        await asyncio.sleep(61.0)
        assert bench.mode is Mode.CLOSED

    bench = on_bench(use)
    assert (bench.engine.starts, bench.engine.kills, bench.engine.streams) == (1, 0, 2)


def test_a_sticky_failure_kills_the_living_host_and_starts_a_new_one() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.STICKY)
        await asyncio.sleep(1.0)
        assert bench.mode is Mode.CLOSED

    bench = on_bench(use)
    assert (bench.engine.starts, bench.engine.kills) == (2, 1)


def test_settings_shorten_the_way_back() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.refuse_starts(1)
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(0.6)
        assert bench.mode is Mode.CLOSED

    on_bench(use, restart_open_s=0.2, success_threshold=1)


def test_a_dead_host_is_the_circuits_to_start_not_a_users() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.die()
        with pytest.raises(EngineCrashed):
            await bench.start()
        assert bench.engine.starts == 1

    on_bench(use)


def test_a_new_host_is_started_only_after_the_old_one_is_gone() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.HANG)
        await asyncio.sleep(3.0)
        assert bench.engine.is_alive
        assert bench.mode is Mode.CLOSED

    on_bench(use, engine=SlowToDie("primary"))


def test_a_timer_that_rings_too_early_is_set_again() -> None:
    async def main() -> None:
        await bench.start()
        bench.fail(FailureClass.TIMEOUT)
        await asyncio.sleep(60.1)
        assert bench.mode is Mode.OPEN
        await asyncio.sleep(1.0)
        assert bench.mode is Mode.CLOSED
        await bench.guard.close()

    time = VirtualClock()
    bench = Bench(ScriptedEngine("primary"), Drifting(time), BreakerSettings(), Canary([9], EXPECTED))
    run_virtual(main(), clock=time)


def test_only_a_circuit_forced_closed_lets_a_user_start_it() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.guard.force(Mode.FORCED_CLOSED)
        bench.engine.die()
        await bench.start()
        assert bench.engine.is_alive

    on_bench(use)


def test_a_start_that_never_ends_is_ended() -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(EngineCrashed, match="in time"):
            await bench.start()

    on_bench(use, engine=ScriptedEngine("primary", start_s=1e9), start_timeout_s=7.0)


def test_a_restart_that_never_ends_counts_as_a_failed_start() -> None:
    async def use(bench: Bench) -> None:
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(100.0)
        assert bench.mode is Mode.HARD_OPEN
        assert bench.engine.starts == 3

    on_bench(use, engine=ScriptedEngine("primary", start_s=1e9), start_timeout_s=7.0)


def test_a_start_that_fails_for_another_reason_than_the_engine_still_counts() -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(EngineCrashed, match="damaged") as caught:
            await bench.start()
        assert caught.value.advice == "compile again"
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(100.0)
        assert bench.mode is Mode.HARD_OPEN

    on_bench(use, engine=DamagedEngine("primary"))


def test_every_canary_is_told_with_its_outcome_and_time() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.inject(Fault("nan", 1))
        bench.fail(FailureClass.TIMEOUT)
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
        bench.fail(FailureClass.TIMEOUT)
        await asyncio.sleep(60.5)
        assert bench.mode is Mode.OPEN
        await asyncio.sleep(121.0)
        assert bench.mode is Mode.CLOSED

    on_bench(use, canary=Canary([9]))


def test_after_close_nobody_is_admitted_and_nothing_is_started() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        permit = bench.guard.admit()
        assert permit is not None
        await bench.guard.close()
        bench.guard.failed(permit, FailureClass.CRASH)
        await asyncio.sleep(100.0)
        assert bench.guard.admit() is None
        assert not bench.guard.admits
        assert bench.engine.starts == 1

    on_bench(use)


def test_closing_in_the_middle_of_a_restart_leaves_no_host() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.die()
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(0.05)
        await bench.guard.close()
        await asyncio.sleep(1.0)
        assert not bench.engine.is_alive

    on_bench(use)
