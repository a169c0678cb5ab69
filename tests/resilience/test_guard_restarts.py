"""How a circuit ends and starts its engine's process, and what it does when that does not work. Virtual time."""

import asyncio

import pytest
from guarding import Bench, on_bench

from kensho.base.errors import Damaged, EngineCrashed, EngineError, EngineUnkillable
from kensho.resilience.circuit import HardReason, Mode
from kensho.resilience.classify import FailureClass
from kensho.testing.engine import ScriptedEngine


class DamagedEngine(ScriptedEngine):
    """Its graph is damaged: `start` raises an error that is no EngineError."""

    async def start(self) -> None:
        raise Damaged("block 3 of the graph is damaged", advice="compile again")


class SlowToDie(ScriptedEngine):
    """Its kernel needs a second to reap it."""

    async def kill(self) -> None:
        await asyncio.sleep(1.0)
        await super().kill()


class Unkillable(ScriptedEngine):
    """Its process is stuck in a driver."""

    async def kill(self) -> None:
        raise EngineUnkillable("process 7 does not react to SIGKILL")


class NeverDies(ScriptedEngine):
    """Nobody even knows."""

    async def kill(self) -> None:
        await asyncio.sleep(1e9)


class NoDevice(ScriptedEngine):
    """Its device was there yesterday."""

    tries = 0

    async def start(self) -> None:
        self.tries += 1
        raise EngineError("no CUDA-capable device is detected")


def test_a_sticky_failure_kills_the_living_host_and_starts_a_new_one() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.STICKY)
        await asyncio.sleep(1.0)
        assert bench.mode is Mode.CLOSED

    bench = on_bench(use)
    assert (bench.engine.starts, bench.engine.kills) == (2, 1)


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


def test_a_host_that_does_not_react_to_sigkill_is_left_to_the_kernel() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.fail(FailureClass.HANG)
        await asyncio.sleep(20.0)
        assert bench.mode is Mode.HARD_OPEN
        assert bench.guard.snapshot().hard is HardReason.UNKILLABLE
        assert bench.engine.starts == 1

    on_bench(use, engine=Unkillable("primary"))
    on_bench(use, engine=NeverDies("primary"))


def test_a_start_that_says_why_no_start_will_help_is_not_repeated() -> None:
    async def use(bench: Bench) -> None:
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(1.0)
        assert bench.guard.snapshot().hard is HardReason.DEVICE_LOST
        await asyncio.sleep(1e4)
        assert bench.engine.tries == 1

    on_bench(use, engine=NoDevice("primary"))


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
