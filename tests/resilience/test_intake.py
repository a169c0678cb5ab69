import asyncio
from typing import Any

import pytest

from kensho.base.errors import EngineError, Overloaded
from kensho.base.events import AdmissionChanged, Event, RequestRejected
from kensho.resilience.admission import AdmissionSettings, Level, Priority
from kensho.resilience.intake import Intake
from kensho.testing.clock import VirtualClock
from kensho.testing.loop import run_virtual


class Desk:
    def __init__(self, clock: VirtualClock, settings: AdmissionSettings) -> None:
        self.clock = clock
        self.slots = 1
        self.events: list[Event] = []
        self.intake = Intake(settings, model="m", slots=lambda: self.slots, clock=clock, emit=self.events.append)

    async def work(self, seconds: float, priority: Priority = Priority.NORMAL, within_s: float = 1000.0) -> float:
        """When the turn came."""
        await self.intake.wait_for_turn(priority, self.clock.monotonic_s() + within_s)
        began = self.clock.monotonic_s()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.intake.end_turn(seconds)
        return began


def at_desk(use: Any, **settings: Any) -> Desk:
    async def main() -> None:
        await use(desk)

    clock = VirtualClock(start_s=0.0)
    desk = Desk(clock, AdmissionSettings(**settings))
    run_virtual(main(), clock=clock)
    return desk


def test_never_more_run_than_there_are_slots_and_new_slots_are_used_at_once() -> None:
    async def use(desk: Desk) -> None:
        tasks = [asyncio.create_task(desk.work(10.0)) for _ in range(4)]
        await asyncio.sleep(1.0)
        assert desk.intake.running == 1
        desk.slots = 3
        desk.intake.pump()
        assert sorted(await asyncio.gather(*tasks)) == [0.0, 1.0, 1.0, 10.0]

    at_desk(use)


def test_a_cancel_at_the_very_moment_of_the_turn_gives_the_slot_back() -> None:
    async def use(desk: Desk) -> None:
        await desk.intake.wait_for_turn(Priority.NORMAL, 1000.0)
        second = asyncio.create_task(desk.work(5.0))
        await asyncio.sleep(1.0)
        desk.intake.end_turn(1.0)
        assert desk.intake.running == 1  # the second has its turn, but has not run yet
        second.cancel()
        await asyncio.wait({second})
        assert desk.intake.running == 0
        assert await desk.work(1.0) == 1.0

    at_desk(use)


def test_an_evicted_request_learns_it_while_it_waits() -> None:
    async def use(desk: Desk) -> None:
        tasks = [asyncio.create_task(desk.work(5.0, priority)) for priority in (Priority.HIGH, Priority.LOW)]
        await asyncio.sleep(1.0)
        high = asyncio.create_task(desk.work(5.0, Priority.HIGH))
        with pytest.raises(Overloaded, match="more important"):
            await tasks[1]
        assert desk.clock.monotonic_s() == 1.0
        assert await high == 5.0

    desk = at_desk(use, bound=1)
    assert [event.reason for event in desk.events if isinstance(event, RequestRejected)] == ["evicted"]


def test_the_level_falls_by_itself_and_both_changes_are_told() -> None:
    async def use(desk: Desk) -> None:
        results = await asyncio.gather(*[desk.work(0.1, Priority.HIGH) for _ in range(7)], return_exceptions=True)
        assert sum(isinstance(result, Overloaded) for result in results) == 5
        assert desk.intake.level is Level.SATURATED
        await asyncio.sleep(12.0)

    desk = at_desk(use, bound=1)
    told = [event for event in desk.events if isinstance(event, AdmissionChanged)]
    assert [(event.from_level, event.to_level) for event in told] == [("NORMAL", "SATURATED"), ("SATURATED", "NORMAL")]


def test_closing_answers_those_who_wait_and_those_who_come() -> None:
    async def use(desk: Desk) -> None:
        running = asyncio.create_task(desk.work(5.0))
        waiting = asyncio.create_task(desk.work(5.0))
        await asyncio.sleep(1.0)
        desk.intake.close(EngineError("closing"))
        for late in (waiting, desk.work(1.0)):
            with pytest.raises(EngineError, match="closing"):
                await late
        assert await running == 0.0

    at_desk(use)
