"""Readers that do not read, or leave: they hold nothing and lose nothing. Virtual time."""

import asyncio

import pytest
from scheduling import LONG, PROMPT, TEN, WHOLE, World, collect, in_world

from kensho.base.events import RequestFinished
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.resilience.stream_life import Answer
from kensho.testing.engine import expected_ids


def test_an_answer_that_nobody_reads_costs_nothing() -> None:
    async def use(world: World) -> None:
        answers: list[Answer] = [world.scheduler.submit(PROMPT, TEN) for _ in range(1000)]
        assert await world.ask() == WHOLE
        for answer in answers:
            await answer.aclose()
        assert sum(world.scheduler.snapshot().waiting.values()) == 0

    in_world(use)


# --- readers ---


def test_a_reader_who_does_not_read_keeps_no_engine_and_loses_nothing() -> None:
    async def use(world: World) -> None:
        answer = world.scheduler.submit(PROMPT, LONG)
        ids = answer.__aiter__()
        got = [await anext(ids)]
        await asyncio.sleep(60.0)
        seen = world.scheduler.snapshot()
        assert (seen.running, seen.unread) == (0, 1)
        assert await world.ask() == WHOLE
        got += [token async for token in ids]
        assert got == expected_ids(PROMPT, LONG)
        assert answer.record.pauses >= 1

    world = in_world(use, engines=1, unread_tokens=16)
    assert [event.outcome for event in world.of(RequestFinished)] == ["ok", "ok"]


def test_readers_who_never_come_back_are_bounded_and_disturb_nobody() -> None:
    async def use(world: World) -> None:
        streams = [world.scheduler.submit(PROMPT, LONG).__aiter__() for _ in range(20)]
        for ids in streams:
            await anext(ids)
        await asyncio.sleep(60.0)
        assert world.scheduler.snapshot().unread == 20
        assert await world.ask() == WHOLE
        for ids in streams:
            await ids.aclose()
        assert world.scheduler.snapshot().unread == 0

    world = in_world(use, unread_tokens=16)
    assert [event.outcome for event in world.of(RequestFinished)] == ["ok"] + ["cancelled"] * 20


def test_a_client_that_leaves_frees_its_slot_at_once() -> None:
    async def use(world: World) -> None:
        task = asyncio.create_task(world.ask(sampling=LONG))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait({task})
        assert world.scheduler.snapshot().running == 0
        began = world.clock.monotonic_s()
        await world.ask()
        assert world.clock.monotonic_s() - began == pytest.approx(0.12)

    in_world(use, engines=1)


def test_a_request_cancelled_before_its_task_began_has_one_outcome_too() -> None:
    async def use(world: World) -> None:
        task = asyncio.create_task(world.ask())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["cancelled"]


def test_a_slow_reader_takes_nobody_elses_engine() -> None:
    """It stops for its own reasons: a LOW stream beside it is interrupted for those who lost an engine."""

    async def use(world: World) -> None:
        slow = world.scheduler.submit(PROMPT, Sampling(max_tokens=500))
        low = world.scheduler.submit(PROMPT, LONG, priority=Priority.LOW)

        async def read_slowly() -> None:
            async for _ in slow:
                await asyncio.sleep(0.03)

        reader = asyncio.create_task(read_slowly())
        await asyncio.sleep(1.0)
        assert await collect(low) == expected_ids(PROMPT, LONG)
        await reader
        assert slow.record.pauses >= 5
        assert low.record.pauses == 0

    in_world(use, engines=1, unread_tokens=16)
