import asyncio
from typing import Any

import pytest

from kensho.base.errors import EngineError, Overloaded
from kensho.base.events import AdmissionChanged, Event, RequestRejected
from kensho.resilience.admission import Candidate, Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.estimate import Times, Work
from kensho.resilience.intake import Intake
from kensho.resilience.pressure import Level
from kensho.testing.clock import VirtualClock
from kensho.testing.loop import run_virtual


class Desk:
    def __init__(self, clock: VirtualClock, settings: AdmissionSettings) -> None:
        self.clock = clock
        self.slots = 1
        self.times = Times()
        self.is_hopeless = True
        self.events: list[Event] = []
        self.intake = Intake(
            settings,
            model="m",
            candidates=lambda: tuple(Candidate(f"engine-{i}", self.times, self.times) for i in range(self.slots)),
            is_free=lambda _: True,
            is_hopeless=lambda: self.is_hopeless,
            clock=clock,
            emit=self.events.append,
        )

    async def work(self, seconds: float, priority: Priority = Priority.NORMAL, within_s: float = 1000.0) -> float:
        """When the turn came."""
        turn = await self.intake.wait_for_turn(priority, self.clock.monotonic_s() + within_s)
        began = self.clock.monotonic_s()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.intake.give_back(turn)
        return began


def at_desk(use: Any, **settings: Any) -> Desk:
    async def main() -> None:
        await use(desk)

    clock = VirtualClock(start_s=0.0)
    if "bound" in settings:
        settings |= {"bound_least": settings["bound"], "bound_most": settings["bound"]}
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
        turn = await desk.intake.wait_for_turn(Priority.NORMAL, 1000.0)
        second = asyncio.create_task(desk.work(5.0))
        await asyncio.sleep(1.0)
        desk.intake.give_back(turn)
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
    assert [event.name for event in told] == ["admission.saturated", "admission.relaxed"]
    assert "overloaded, pausing unimportant work" in told[0].next_step
    assert [(event.from_level, event.to_level) for event in told] == [("NORMAL", "SATURATED"), ("SATURATED", "NORMAL")]


def test_what_was_announced_is_taken_back_by_closing() -> None:
    async def use(desk: Desk) -> None:
        await asyncio.gather(*[desk.work(0.1, Priority.HIGH) for _ in range(7)], return_exceptions=True)
        assert desk.intake.level is Level.SATURATED
        for _ in range(2):
            desk.intake.close(EngineError("closed"))

    told = [event for event in at_desk(use, bound=1).events if isinstance(event, AdmissionChanged)]
    assert [event.name for event in told] == ["admission.saturated", "admission.relaxed"]


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


def test_an_urgent_request_asks_the_youngest_low_turn_to_stop_and_only_one_for_each() -> None:
    async def use(desk: Desk) -> None:
        desk.slots = 2
        cuts: list[str] = []
        turns = {}
        for name in ("older", "younger"):
            turns[name] = await desk.intake.wait_for_turn(Priority.LOW, 1000.0)
            turns[name].cut = lambda name=name: cuts.append(name)
            await asyncio.sleep(1.0)
        normal = asyncio.create_task(desk.work(1.0))
        await asyncio.sleep(1.0)
        assert cuts == []
        urgent = asyncio.create_task(desk.work(1.0, Priority.CRITICAL))
        await asyncio.sleep(1.0)
        assert cuts == ["younger"]
        desk.intake.give_back(turns["younger"])
        again = asyncio.create_task(desk.intake.wait_again(turns["younger"], float("inf"), Work(9)))
        assert await urgent == 4.0
        await normal
        assert (await again).ticket.work == Work(9)

    at_desk(use)


def test_whoever_gives_back_twice_frees_one_engine_once() -> None:
    async def use(desk: Desk) -> None:
        turn = await desk.intake.wait_for_turn(Priority.NORMAL, 1000.0)
        desk.intake.give_back(turn)
        other = asyncio.create_task(desk.work(5.0))
        await asyncio.sleep(1.0)
        desk.intake.give_back(turn)
        assert desk.intake.running == 1
        await other

    at_desk(use)


def test_without_an_engine_those_who_wait_are_told_unless_one_is_coming() -> None:
    async def use(desk: Desk) -> None:
        desk.slots, desk.is_hopeless = 0, False
        waiting = asyncio.create_task(desk.intake.wait_for_turn(Priority.NORMAL, 1000.0))
        await asyncio.sleep(5.0)
        assert not waiting.done()
        desk.is_hopeless = True
        desk.intake.pump()
        assert (await waiting).engine is None

    at_desk(use)


def test_one_who_wants_an_engine_that_is_gone_is_told_and_holds_up_nobody() -> None:
    async def use(desk: Desk) -> None:
        desk.slots = 2
        assert (await desk.intake.wait_for_turn(Priority.NORMAL, 1000.0, engine="engine-1")).engine == "engine-1"
        waiting = asyncio.create_task(desk.intake.wait_for_turn(Priority.HIGH, 1000.0, engine="engine-1"))
        await asyncio.sleep(1.0)
        assert (await desk.intake.wait_for_turn(Priority.LOW, 1000.0)).engine == "engine-0"
        desk.slots = 1
        desk.intake.pump()
        assert (await waiting).engine is None

    at_desk(use)


def test_a_second_engine_is_claimed_only_while_nobody_waits() -> None:
    async def use(desk: Desk) -> None:
        desk.slots = 2
        turn = await desk.intake.wait_for_turn(Priority.CRITICAL, 1000.0)
        second = desk.intake.claim(turn)
        assert second is not None
        assert second.engine == "engine-1"
        assert desk.intake.claim(turn) is None
        desk.intake.give_back(second)
        assert desk.intake.running == 1

    at_desk(use)


def test_a_low_turn_is_not_cut_for_one_who_cannot_use_its_engine() -> None:
    async def use(desk: Desk) -> None:
        desk.slots = 2
        cuts: list[str] = []
        low = await desk.intake.wait_for_turn(Priority.LOW, 1000.0)
        high = await desk.intake.wait_for_turn(Priority.HIGH, 1000.0)
        low.cut = lambda: cuts.append("low")
        assert (low.engine, high.engine) == ("engine-0", "engine-1")
        named = asyncio.create_task(desk.intake.wait_for_turn(Priority.CRITICAL, 1000.0, engine="engine-1"))
        await asyncio.sleep(1.0)
        assert cuts == []
        anyone = asyncio.create_task(desk.work(1.0, Priority.CRITICAL))
        await asyncio.sleep(1.0)
        assert cuts == ["low"]
        desk.intake.give_back(low)
        desk.intake.give_back(high)
        assert (await named).engine == "engine-1"
        await anyone

    at_desk(use)


@pytest.mark.parametrize(("is_urgent", "cuts"), [(True, ["low"]), (False, [])])
def test_a_low_turn_is_cut_for_one_who_lost_an_engine_and_not_for_one_who_stopped_by_itself(
    is_urgent: bool, cuts: list[str]
) -> None:
    async def use(desk: Desk) -> None:
        seen: list[str] = []
        slow = await desk.intake.wait_for_turn(Priority.NORMAL, 1000.0)
        desk.intake.give_back(slow)
        low = await desk.intake.wait_for_turn(Priority.LOW, 1000.0)
        low.cut = lambda: seen.append("low")
        again = asyncio.create_task(desk.intake.wait_again(slow, float("inf"), Work(), is_urgent=is_urgent))
        await asyncio.sleep(1.0)
        assert seen == cuts
        desk.intake.give_back(low)
        await again

    at_desk(use)


def test_what_a_request_held_in_all_is_one_service_time_however_often_it_stopped() -> None:
    async def use(desk: Desk) -> None:
        turn = await desk.intake.wait_for_turn(Priority.NORMAL, 1000.0)
        for pause in range(3):
            await asyncio.sleep(2.0)
            desk.intake.give_back(turn)
            assert desk.intake.estimate().service_s == 0.0
            await asyncio.sleep(5.0)
            turn = await desk.intake.wait_again(turn, float("inf"), Work(), is_urgent=pause == 1)
        await asyncio.sleep(1.0)
        desk.intake.done(turn)
        desk.intake.done(await desk.intake.wait_for_turn(Priority.NORMAL, 1000.0))  # it held nothing
        assert (desk.intake.estimate().service_s, desk.intake.estimate().service_p95_s) == (7.0, 7.0)
        assert desk.intake.running == 0

    at_desk(use)


NOBODY_KNOWS, QUICK = 0, 1  # steps of a CRITICAL request: a stream has none that it answers for


@pytest.mark.parametrize(
    ("steps", "due_in_s", "is_cut"),
    [(NOBODY_KNOWS, 19.9, False), (NOBODY_KNOWS, 20.1, True), (QUICK, 11.9, False), (QUICK, 12.1, True)],
)
def test_a_high_turn_gives_way_if_it_is_in_time_all_the_same_once_the_critical_one_has_ended(
    steps: int, due_in_s: float, is_cut: bool
) -> None:
    """A stream is over when streams usually are, and not with its first token."""

    async def use(desk: Desk) -> None:
        cuts: list[str] = []
        first = await desk.intake.wait_for_turn(Priority.NORMAL, 1000.0)
        await asyncio.sleep(10.0)
        desk.intake.done(first)  # so long requests hold an engine
        desk.times = Times(((1, 1.0), (4, 5.0)), step_s=1.0)
        high = await desk.intake.wait_for_turn(Priority.HIGH, desk.clock.monotonic_s() + due_in_s, Work(4))
        high.cut = lambda: cuts.append("high")
        deadline_s = desk.clock.monotonic_s() + 100.0
        critical = asyncio.create_task(desk.intake.wait_for_turn(Priority.CRITICAL, deadline_s, Work(1, steps)))
        await asyncio.sleep(0.0)
        assert bool(cuts) is is_cut
        desk.intake.give_back(high)
        desk.intake.give_back(await critical)

    at_desk(use)
