"""What the scheduler learns of its engines' times, and whom it refuses by them. Virtual time."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pytest
from scheduling import LONG, PROMPT, TEN, WHOLE, World, in_world

from kensho.base.errors import DeadlineMissed
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.resilience.estimate import Work
from kensho.testing.engine import ScriptedEngine, expected_ids

SHORT, HUGE = [5, 6, 7], [1] * 1000


def by_length(engine: ScriptedEngine) -> None:
    """Its prefill takes 2 ms for each id."""
    generate: Any = engine.generate

    async def slower(prompt: Sequence[int], accepted: Sequence[int], sampling: Sampling) -> AsyncGenerator[int, None]:
        engine._prefill_s = len(prompt) * 0.002
        async for token in generate(prompt, accepted, sampling):
            yield token

    engine.generate = slower  # type: ignore[method-assign]


@pytest.mark.parametrize(("quick", "slow"), [(SHORT, HUGE), (HUGE, SHORT)])
def test_prompts_of_one_size_are_not_refused_for_what_another_size_takes(quick: list[int], slow: list[int]) -> None:
    """Two seconds for a thousand ids say nothing of three, and half a second for three nothing of a thousand."""

    def prepare(world: World) -> None:
        if slow is HUGE:
            by_length(world.primary)
        else:
            world.primary._prefill_s = 0.5  # whatever the length

    async def use(world: World) -> None:
        for _ in range(10):
            await world.ask(prompt=slow, sampling=TEN)
            await asyncio.sleep(5.0)
            deadline_s = world.clock.monotonic_s() + 1.5
            assert await world.ask(prompt=quick, priority=Priority.HIGH, deadline_s=deadline_s) == expected_ids(
                quick, TEN
            )

    in_world(use, engines=1, prepare=prepare)


def test_a_prompt_that_is_too_long_for_its_deadline_is_tried_once_a_minute() -> None:
    tried = 0

    async def use(world: World) -> None:
        nonlocal tried
        for _ in range(100):
            began_s, streams = world.clock.monotonic_s(), world.primary.streams
            with pytest.raises(DeadlineMissed):
                await world.ask(prompt=HUGE, priority=Priority.HIGH, deadline_s=began_s + 1.0)
            tried += world.primary.streams > streams
            assert await world.ask() == WHOLE
            await asyncio.sleep(1.0)

    in_world(use, engines=1, prepare=lambda world: by_length(world.primary))
    assert tried == 2


def test_a_stream_that_goes_on_is_no_measure_of_a_prefill() -> None:
    """It finds what it had computed: a fresh prompt of that length would take longer."""

    async def use(world: World) -> None:
        low = asyncio.create_task(world.ask(prompt=PROMPT * 20, priority=Priority.LOW, sampling=LONG))
        await asyncio.sleep(1.0)
        world.primary._prefill_s = 0.0
        await world.ask(priority=Priority.CRITICAL)
        await low
        times = world.scheduler._times["primary"].times(world.clock.monotonic_s())
        assert times.needed_s(Work(len(PROMPT) * 20)) == pytest.approx(0.03)
        assert [size for size, _ in times.prefill] == [8, 128]

    in_world(use, engines=1)


def test_a_whole_answer_without_a_limit_is_not_refused_for_as_many_tokens_as_the_context_has() -> None:
    """Only the pace is known, of a stream that was left early."""
    no_limit = Sampling(max_tokens=32_768, stop_ids=tuple(WHOLE[5:6]))

    async def use(world: World) -> None:
        async with aclosing(world.scheduler.submit([1, 2], Sampling(max_tokens=32_768))) as stream:
            ids = aiter(stream)
            assert len([await anext(ids) for _ in range(60)]) == 60
        assert await world.ask(sampling=no_limit, is_whole=True) == WHOLE[:5]

    in_world(use, engines=1)
