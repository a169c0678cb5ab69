"""A scheduler over two scripted engines, on virtual time."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from kensho.base.events import CircuitChanged, Event
from kensho.base.inference import Sampling
from kensho.resilience.checkups import CheckupSettings
from kensho.resilience.circuit import BreakerSettings
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.resilience.stream_life import Answer
from kensho.resilience.surroundings import UNKNOWN, Surroundings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

PROMPT = [3, 1, 4, 1, 5]
TEN = Sampling(max_tokens=10)
LONG = Sampling(max_tokens=300)
WHOLE = expected_ids(PROMPT, TEN)
CANARY_IDS = expected_ids([9], Sampling(max_tokens=2))


class World:
    def __init__(
        self,
        clock: VirtualClock,
        settings: SchedulerSettings,
        canary: Canary,
        engines: int,
        surroundings: Surroundings = UNKNOWN,
    ) -> None:
        self.clock = clock
        self.events: list[Event] = []
        self.primary = ScriptedEngine("primary")
        self.standby = ScriptedEngine("standby")
        self.scheduler = Scheduler(
            self.primary,
            self.standby if engines == 2 else None,
            model="m",
            version="1",
            tier_of=lambda engine: f"tier of {engine}",
            canary=canary,
            settings=settings,
            clock=clock,
            rng=lambda: 0.5,
            emit=self.events.append,
            surroundings=surroundings,
        )

    async def ask(self, *, prompt: Sequence[int] = PROMPT, sampling: Sampling = TEN, **how: Any) -> list[int]:
        answer = self.scheduler.submit(prompt, sampling, **how)
        async with aclosing(answer):
            return [token async for token in answer]

    def of(self, *kinds: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    def changes(self, engine: str = "primary") -> list[str]:
        seen = [event for event in self.of(CircuitChanged) if event.engine == engine]
        return [event.from_state for event in seen[:1]] + [event.to_state for event in seen]


def in_world(
    use: Any,
    *,
    canary: Canary | None = None,
    engines: int = 2,
    prepare: Any = None,
    before_s: float = 1.0,
    surroundings: Surroundings = UNKNOWN,
    **settings: Any,
) -> World:
    async def main() -> None:
        if prepare:
            prepare(world)
        async with world.scheduler:
            await asyncio.sleep(before_s)
            await use(world)
        assert_nothing_is_left()
        assert not world.primary.is_alive
        assert not world.standby.is_alive

    clock = VirtualClock()
    settings.setdefault("breaker", BreakerSettings(ramp_s=0.0))
    settings.setdefault("checkups", CheckupSettings(every_s=0.0))
    world = World(clock, SchedulerSettings(**settings), canary or Canary([9], CANARY_IDS), engines, surroundings)
    run_virtual(main(), clock=clock)
    return world


def assert_nothing_is_left() -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}
    loop: Any = asyncio.get_running_loop()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


async def collect(answer: Answer) -> list[int]:
    return [token async for token in answer]
