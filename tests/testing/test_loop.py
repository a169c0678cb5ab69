import asyncio
import time

import pytest

from kensho.testing.clock import VirtualClock
from kensho.testing.loop import Stuck, run_virtual


def test_a_day_of_timers_passes_without_waiting() -> None:
    clock = VirtualClock(start_s=0.0)
    wakes: list[float] = []

    async def ticker(every_s: float, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(every_s)
            wakes.append(clock.monotonic_s())

    async def day() -> None:
        await asyncio.gather(ticker(60.0, 1440), ticker(3600.0, 24))

    began = time.perf_counter()
    run_virtual(day(), clock=clock)
    assert clock.monotonic_s() == pytest.approx(86_400.0)
    assert wakes == sorted(wakes)
    assert len(wakes) == 1464
    assert time.perf_counter() - began < 5.0


def test_loop_time_is_the_clocks_time() -> None:
    clock = VirtualClock(start_s=5.0)

    async def main() -> tuple[float, float]:
        await asyncio.sleep(1.0)
        return asyncio.get_running_loop().time(), clock.monotonic_s()

    assert run_virtual(main(), clock=clock) == (6.0, 6.0)


def test_a_timeout_fires_at_its_virtual_moment() -> None:
    clock = VirtualClock(start_s=0.0)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(7.0):
                await asyncio.Event().wait()

    run_virtual(main(), clock=clock)
    assert clock.monotonic_s() == pytest.approx(7.0)


def test_a_deadlock_ends_the_run_instead_of_hanging_it() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        run_virtual(main())


def test_a_timer_that_rings_for_ever_does_not_keep_a_deadlock_alive() -> None:
    async def main() -> None:
        def ring() -> None:
            loop.call_later(60.0, ring)

        loop = asyncio.get_running_loop()
        ring()
        await asyncio.Event().wait()

    clock = VirtualClock(start_s=0.0)
    with pytest.raises(Stuck):
        run_virtual(main(), clock=clock, limit_s=3600.0)
    assert 3600.0 <= clock.monotonic_s() < 3700.0


def test_tasks_left_behind_are_cancelled() -> None:
    cancelled = []

    async def left_behind() -> None:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> asyncio.Task[None]:
        task = asyncio.create_task(left_behind())
        await asyncio.sleep(0)
        return task

    run_virtual(main())
    assert cancelled == [True]
