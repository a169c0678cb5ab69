"""A guard that waits for whoever uses its engine: the time of starts and canaries runs from when it is theirs."""

import asyncio

import pytest
from guarding import Bench, on_bench

from kensho.base.events import CircuitChanged
from kensho.resilience.circuit import Mode
from kensho.resilience.classify import FailureClass
from kensho.testing.engine import Fault


def holding(bench: Bench, duration_s: float) -> "asyncio.Task[None]":
    """A stream that has the engine for itself for so long."""

    async def hold() -> None:
        async with bench.guard.lane:
            await asyncio.sleep(duration_s)

    return asyncio.create_task(hold())


@pytest.mark.parametrize("mode", [Mode.FORCED_OPEN, Mode.METRICS_ONLY, Mode.FORCED_CLOSED])
def test_a_forced_circuit_that_is_given_back_kills_no_stream_however_long_it_runs(mode: Mode) -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        stream = holding(bench, 1000.0)
        await asyncio.sleep(1.0)
        bench.guard.force(mode)
        bench.guard.force(None)
        await asyncio.sleep(900.0)
        assert bench.mode is Mode.HALF_OPEN
        assert not stream.done()
        await asyncio.sleep(100.0)
        assert bench.mode is Mode.CLOSED

    bench = on_bench(use)
    assert (bench.engine.starts, bench.engine.kills) == (1, 0)
    told = [event.to_state for event in bench.events if isinstance(event, CircuitChanged)]
    assert told == [mode.value, "RESTARTING", "HALF_OPEN", "CLOSED"]


def test_a_stream_that_survives_its_circuit_makes_no_canary_late() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        holding(bench, 200.0)
        await asyncio.sleep(1.0)
        bench.fail(FailureClass.MISMATCH)
        await asyncio.sleep(150.0)
        assert bench.mode is Mode.HALF_OPEN
        await asyncio.sleep(60.0)
        assert bench.mode is Mode.CLOSED

    assert on_bench(use).engine.kills == 0


def test_a_stream_that_goes_on_after_the_machine_slept_is_not_killed_for_the_canary() -> None:
    asleep = [0.0]

    async def use(bench: Bench) -> None:
        await bench.start()
        holding(bench, 100.0)
        await asyncio.sleep(1.0)
        asleep[0] = 3.0
        assert bench.guard.admit() is None
        await asyncio.sleep(50.0)
        assert bench.mode is Mode.HALF_OPEN
        await asyncio.sleep(51.0)
        assert bench.mode is Mode.CLOSED

    assert on_bench(use, asleep=asleep).engine.kills == 0


def test_a_canary_that_hangs_is_late_five_seconds_after_it_got_the_engine() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        bench.engine.inject(Fault("hang", 1))
        holding(bench, 80.0)
        await asyncio.sleep(1.0)
        bench.fail(FailureClass.MISMATCH)
        await asyncio.sleep(83.0)
        assert bench.mode is Mode.HALF_OPEN
        await asyncio.sleep(1.5)
        assert bench.mode is Mode.OPEN
        assert bench.engine.kills == 1

    on_bench(use)


def test_a_canary_that_waited_while_its_circuit_went_elsewhere_does_not_run() -> None:
    async def use(bench: Bench) -> None:
        await bench.start()
        holding(bench, 100.0)
        await asyncio.sleep(1.0)
        bench.fail(FailureClass.MISMATCH)
        await asyncio.sleep(61.0)
        bench.guard.force(Mode.FORCED_OPEN)
        await asyncio.sleep(100.0)
        assert bench.engine.streams == 0

    on_bench(use)


def test_a_start_waits_for_the_engine_and_then_has_all_its_time() -> None:
    async def use(bench: Bench) -> None:
        holding(bench, 300.0)
        await asyncio.sleep(1.0)
        bench.fail(FailureClass.CRASH)
        await asyncio.sleep(298.0)
        assert (bench.mode, bench.engine.starts) == (Mode.RESTARTING, 0)
        await asyncio.sleep(2.0)
        assert bench.mode is Mode.CLOSED

    on_bench(use)
