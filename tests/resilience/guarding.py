"""An engine under its circuit, on virtual time, and engines with a fault of their own."""

import asyncio
from collections.abc import Sequence
from typing import Any

from kensho.base.clock import Clock
from kensho.base.events import Event
from kensho.base.inference import Sampling
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.classify import FailureClass
from kensho.resilience.guard import Canary, Guard
from kensho.resilience.surroundings import UNKNOWN, Surroundings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

EXPECTED = expected_ids([9], Sampling(max_tokens=3))


class Bench:
    def __init__(
        self,
        engine: ScriptedEngine,
        clock: Clock,
        settings: BreakerSettings,
        canary: Canary,
        surroundings: Surroundings = UNKNOWN,
    ) -> None:
        self.engine: Any = engine
        self.clock = clock
        self.draw = 0.5
        self.events: list[Event] = []
        self.guard = Guard(
            engine,
            canary,
            model="m",
            settings=settings,
            clock=clock,
            rng=lambda: self.draw,
            emit=self.events.append,
            on_change=lambda: None,
            surroundings=surroundings,
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


def on_bench(
    use: Any,
    *,
    engine: ScriptedEngine | None = None,
    canary: Canary | None = None,
    surroundings: Surroundings = UNKNOWN,
    asleep: Sequence[float] | None = None,
    **settings: Any,
) -> Bench:
    """`asleep[0]`: how long the machine has slept."""

    async def main() -> None:
        try:
            await use(bench)
        finally:
            await bench.guard.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}

    clock = VirtualClock()
    if asleep is not None:
        surroundings = Surroundings(boot_s=lambda: clock.monotonic_s() + asleep[0])
    bench = Bench(
        engine or ScriptedEngine("primary"),
        clock,
        BreakerSettings(**settings),
        canary or Canary([9], EXPECTED),
        surroundings,
    )
    run_virtual(main(), clock=clock)
    return bench
