"""Streams that give way to more important requests, and go on as if undisturbed. Virtual time."""

import asyncio

import pytest
from scheduling import LONG, PROMPT, TEN, WHOLE, World, collect, in_world

from kensho.base.events import RequestFinished, StreamMoved
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.testing.engine import expected_ids


def test_a_critical_request_waits_for_a_step_and_not_for_a_low_stream() -> None:
    async def use(world: World) -> None:
        low = asyncio.create_task(world.ask(priority=Priority.LOW, sampling=LONG))
        await asyncio.sleep(1.0)
        answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
        assert [token async for token in answer] == WHOLE
        assert answer.record.first_token_ms == pytest.approx(30.0, abs=10.1)  # its own prefill, and the rest of a step
        assert await low == expected_ids(PROMPT, LONG)

    world = in_world(use, engines=1)
    assert [event.priority for event in world.of(RequestFinished)] == ["critical", "low"]
    assert world.of(RequestFinished)[1].failovers == 0


def test_a_low_stream_that_is_cut_again_and_again_loses_and_repeats_nothing() -> None:
    async def use(world: World) -> None:
        answers = [world.scheduler.submit(PROMPT, LONG, priority=Priority.LOW) for _ in range(2)]
        lows = [asyncio.create_task(collect(answer)) for answer in answers]
        for _ in range(8):
            await asyncio.sleep(0.35)
            assert await world.ask(priority=Priority.CRITICAL) == WHOLE
        assert await asyncio.gather(*lows) == [expected_ids(PROMPT, LONG)] * 2
        assert sum(answer.record.pauses for answer in answers) >= 5

    in_world(use)


@pytest.mark.parametrize("priority", [Priority.HIGH, Priority.NORMAL])
def test_a_stream_of_any_class_gives_way_to_a_critical_request(priority: Priority) -> None:
    async def use(world: World) -> None:
        long = asyncio.create_task(world.ask(priority=priority, sampling=LONG))
        await asyncio.sleep(1.0)
        answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
        assert [token async for token in answer] == WHOLE
        assert answer.record.first_token_ms == pytest.approx(30.0, abs=10.1)
        assert await long == expected_ids(PROMPT, LONG)

    world = in_world(use, engines=1)
    assert [event.priority for event in world.of(RequestFinished)] == ["critical", priority.name.lower()]


@pytest.mark.parametrize("urgent", [Priority.HIGH, Priority.NORMAL])
def test_nobody_but_low_gives_way_to_one_who_is_not_critical(urgent: Priority) -> None:
    async def use(world: World) -> None:
        long = asyncio.create_task(world.ask(priority=Priority.NORMAL, sampling=LONG))
        await asyncio.sleep(1.0)
        await world.ask(priority=urgent)
        assert await long == expected_ids(PROMPT, LONG)

    world = in_world(use, engines=1)
    assert world.of(RequestFinished)[0].tokens == LONG.max_tokens


def test_a_critical_stream_gives_way_to_nobody() -> None:
    async def use(world: World) -> None:
        first = world.scheduler.submit(PROMPT, LONG, priority=Priority.CRITICAL)
        running = asyncio.create_task(collect(first))
        await asyncio.sleep(1.0)
        await world.ask(priority=Priority.CRITICAL)
        assert await running == expected_ids(PROMPT, LONG)
        assert first.record.pauses == 0

    in_world(use, engines=1)


@pytest.mark.parametrize(("slack_s", "pauses"), [(1.0, 0), (20.0, 1)])
def test_a_whole_answer_gives_way_only_if_it_is_in_time_all_the_same(slack_s: float, pauses: int) -> None:
    async def use(world: World) -> None:
        for _ in range(3):  # so that the times of a step and of an answer are known
            await world.ask(sampling=LONG)
        deadline_s = world.clock.monotonic_s() + 3.1 + slack_s  # 300 tokens of 10 ms
        whole = world.scheduler.submit(PROMPT, LONG, deadline_s=deadline_s, is_whole=True)
        running = asyncio.create_task(collect(whole))
        await asyncio.sleep(2.0)
        await world.ask(priority=Priority.CRITICAL)
        assert await running == expected_ids(PROMPT, LONG)
        assert whole.record.pauses == pauses
        assert world.clock.monotonic_s() <= deadline_s

    in_world(use, engines=1)


def test_a_stream_that_lost_its_engine_takes_that_of_a_low_one() -> None:
    async def use(world: World) -> None:
        high = asyncio.create_task(world.ask(priority=Priority.HIGH, sampling=LONG))
        await asyncio.sleep(0.5)
        low = asyncio.create_task(world.ask(priority=Priority.LOW, sampling=LONG))
        await asyncio.sleep(0.5)
        world.primary.die()
        assert await high == await low == expected_ids(PROMPT, LONG)

    world = in_world(use)
    (moved,) = world.of(StreamMoved)
    assert (moved.to_engine, moved.gap_ms) == ("standby", pytest.approx(35.0, abs=6.0))


def test_a_low_stream_that_cannot_go_on_waits_without_a_deadline() -> None:
    async def use(world: World) -> None:
        low = asyncio.create_task(world.ask(priority=Priority.LOW, sampling=LONG))
        await asyncio.sleep(1.0)
        for _ in range(3):
            assert len(await world.ask(priority=Priority.CRITICAL, sampling=Sampling(max_tokens=700))) == 700
        assert await low == expected_ids(PROMPT, LONG)

    in_world(use, engines=1)


def test_a_stream_that_was_moved_may_go_back_to_an_engine_that_was_proven_since() -> None:
    async def use(world: World) -> None:
        answer = world.scheduler.submit(PROMPT, Sampling(max_tokens=1500))
        running = asyncio.create_task(collect(answer))
        await asyncio.sleep(0.5)
        world.primary.die()
        await asyncio.sleep(9.0)
        assert answer.record.engine == "standby"
        short = asyncio.create_task(world.ask(priority=Priority.CRITICAL))
        long = asyncio.create_task(world.ask(priority=Priority.CRITICAL, sampling=LONG))
        await asyncio.sleep(1.0)
        assert answer.record.engine == "primary"
        await asyncio.gather(short, long)
        assert await running == expected_ids(PROMPT, Sampling(max_tokens=1500))

    in_world(use)
