"""Requests that wait: deadlines, cancels, refusals, and what is told of them. Virtual time."""

import asyncio

import pytest
from scheduling import LONG, PROMPT, TEN, WHOLE, World, collect, in_world

from kensho.base.errors import DeadlineMissed, Overloaded
from kensho.base.events import AdmissionChanged, RequestFinished, RequestRejected, StreamMoved
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.circuit import Mode
from kensho.resilience.pressure import Level
from kensho.testing.engine import Fault, expected_ids

# --- admission ---


def test_the_important_request_goes_first() -> None:
    async def use(world: World) -> None:
        order = [Priority.LOW, Priority.LOW, Priority.NORMAL, Priority.CRITICAL, Priority.HIGH]
        asks = [asyncio.create_task(world.ask(priority=priority)) for priority in order]
        await asyncio.gather(*asks)

    world = in_world(use, engines=1)
    assert [event.priority for event in world.of(RequestFinished)] == ["critical", "high", "normal", "low", "low"]


def test_a_full_queue_refuses_with_reason_and_time_and_says_that_it_is_saturated() -> None:
    async def use(world: World) -> None:
        results = await asyncio.gather(*[world.ask(priority=Priority.HIGH) for _ in range(9)], return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert len(refused) == 6
        assert all(error.facts["retry_after_s"] for error in refused)
        assert world.scheduler.snapshot().level is Level.SATURATED
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED
        await asyncio.sleep(12.0)

    world = in_world(use, engines=1, admission=AdmissionSettings(bound=2, bound_least=2, bound_most=2))
    assert [event.reason for event in world.of(RequestRejected)] == ["full"] * 6
    assert [event.to_level for event in world.of(AdmissionChanged)] == ["SATURATED", "NORMAL"]
    assert len(world.of(RequestFinished)) == 3


def test_a_deadline_that_passes_in_the_queue_is_told_at_once() -> None:
    async def use(world: World) -> None:
        long = asyncio.create_task(world.ask(sampling=Sampling(max_tokens=1000)))
        await asyncio.sleep(0.1)
        began = world.clock.monotonic_s()
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=began + 2.0)
        # The first token would take what the first one took, so it is known that long before.
        assert world.clock.monotonic_s() == pytest.approx(began + 2.0 - 0.03, abs=0.002)
        await long

    in_world(use, engines=1)


def test_a_first_token_that_misses_its_deadline_is_cancelled_and_blames_nobody() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("slow"))
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=world.clock.monotonic_s() + 0.1)
        assert world.scheduler.snapshot().circuits["primary"].counters.failures == 0
        assert world.scheduler.snapshot().running == 0
        assert await world.ask() == WHOLE

    in_world(use, engines=1)


def test_a_deadline_in_the_past_is_refused_without_touching_an_engine() -> None:
    async def use(world: World) -> None:
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=world.clock.monotonic_s() - 1.0)
        assert world.primary.streams == 0

    in_world(use)


def test_cancelled_requests_free_their_places_and_slots_at_once() -> None:
    async def use(world: World) -> None:
        running = asyncio.create_task(world.ask(sampling=Sampling(max_tokens=10_000)))
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(world.ask(priority=Priority.LOW)) for _ in range(100)]
        await asyncio.sleep(0.1)
        assert world.scheduler.snapshot().waiting[Priority.LOW] == 100
        for task in (*waiting, running):
            task.cancel()
        await asyncio.gather(running, *waiting, return_exceptions=True)
        seen = world.scheduler.snapshot()
        assert (seen.running, sum(seen.waiting.values())) == (0, 0)
        assert await world.ask() == WHOLE

    world = in_world(use, engines=1)
    outcomes = [event.outcome for event in world.of(RequestFinished)]
    assert (outcomes.count("cancelled"), outcomes.count("ok")) == (101, 1)


def test_a_first_token_that_a_failover_delayed_says_nothing_about_the_next_one() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("hang", 0))
        assert await world.ask() == WHOLE
        assert await world.ask(deadline_s=world.clock.monotonic_s() + 2.0) == WHOLE

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["ok", "ok"]
    assert world.of(StreamMoved)[0].gap_ms > 8000.0


# --- whole answers ---


def test_the_deadline_of_a_whole_answer_is_of_its_last_token() -> None:
    async def use(world: World) -> None:
        with pytest.raises(DeadlineMissed, match="was not complete"):
            await world.ask(deadline_s=world.clock.monotonic_s() + 0.1, is_whole=True, sampling=LONG)
        assert world.scheduler.snapshot().running == 0
        assert await world.ask(deadline_s=world.clock.monotonic_s() + 0.05) == WHOLE
        assert await world.ask(deadline_s=world.clock.monotonic_s() + 0.3, is_whole=True) == WHOLE

    in_world(use, engines=1)


def test_a_whole_answer_that_cannot_be_in_time_is_refused_before_an_engine_is_used() -> None:
    async def use(world: World) -> None:
        for _ in range(3):
            await world.ask(is_whole=True, sampling=LONG)
        before = world.primary.streams
        with pytest.raises(DeadlineMissed, match="could not be answered"):
            await world.ask(deadline_s=world.clock.monotonic_s() + 2.0, is_whole=True, sampling=LONG)
        assert world.primary.streams == before
        # Once answers are shorter than they might be, what is usual counts, and not what is allowed.
        short = Sampling(max_tokens=LONG.max_tokens, stop_ids=tuple(expected_ids(PROMPT, TEN)[-1:]))
        for _ in range(61):
            await world.ask(is_whole=True, sampling=short)
        assert await world.ask(deadline_s=world.clock.monotonic_s() + 2.0, is_whole=True, sampling=short) == WHOLE[:-1]

    in_world(use, engines=1)


# --- bad input ---


@pytest.mark.parametrize("deadline", [float("nan"), float("-inf"), 0.0, -5.0])
def test_impossible_deadlines_are_refused_without_touching_an_engine(deadline: float) -> None:
    async def use(world: World) -> None:
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=deadline)
        assert world.primary.streams == 0
        assert await world.ask() == WHOLE

    in_world(use)


def test_hundreds_of_cancels_of_waiting_requests_leave_nothing() -> None:
    async def use(world: World) -> None:
        running = asyncio.create_task(world.ask(sampling=LONG))
        await asyncio.sleep(0.1)
        for _ in range(20):
            tasks = [asyncio.create_task(world.ask(priority=Priority.HIGH)) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert sum(world.scheduler.snapshot().waiting.values()) == 0
        assert await running == expected_ids(PROMPT, LONG)

    in_world(use, engines=1)


def test_each_request_has_a_number_of_its_own_that_all_its_events_have() -> None:
    async def use(world: World) -> None:
        answers = [world.scheduler.submit(PROMPT, TEN, priority=Priority.HIGH) for _ in range(6)]
        numbers = [answer.number for answer in answers]
        assert numbers == sorted(set(numbers))
        results = await asyncio.gather(*[collect(answer) for answer in answers], return_exceptions=True)
        refused = {n for n, result in zip(numbers, results, strict=True) if isinstance(result, Overloaded)}
        assert {event.request for event in world.of(RequestRejected)} == refused
        assert {event.request for event in world.of(RequestFinished)} == set(numbers) - refused
        assert {event.model for event in world.of(RequestRejected)} == {"m"}
        assert len(refused) == 3

    in_world(use, engines=1, admission=AdmissionSettings(bound=2, bound_least=2, bound_most=2))
