"""An engine that hangs obeys no cancel either: nobody waits for its end, and its circuit learns of it all the same."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import aclosing, suppress
from typing import Any

import pytest
from scheduling import LONG, PROMPT, TEN, WHOLE, World, assert_nothing_is_left, in_world

from kensho.base.errors import DeadlineMissed, EngineError, PoisonRequest
from kensho.base.events import RequestFinished, RequestPoisoned, RequestRejected, StreamMoved
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.resilience.circuit import Mode
from kensho.resilience.circuit_status import CircuitStatus
from kensho.testing.engine import Fault, ScriptedEngine, expected_ids

FIRST_S = 8.0 + 0.01 * len(PROMPT)
"""How long a fresh engine may be silent before its first token (FailoverSettings)."""
TOKEN_S = 5.0


def circuit(world: World, engine: str = "primary") -> CircuitStatus:
    return world.scheduler.snapshot().circuits[engine]


async def took(world: World, work: Awaitable[Any]) -> float:
    began_s = world.clock.monotonic_s()
    await work
    return world.clock.monotonic_s() - began_s


async def assert_it_was_a_hang(world: World) -> None:
    """Counted once, mended, and of use again."""
    await asyncio.sleep(FIRST_S + 1.0)
    seen = circuit(world)
    assert (seen.mode, seen.counters.failures, world.primary.kills > 0) == (Mode.CLOSED, 1, True)
    assert "hang" in next(event.reason for event in world.events if event.name == "circuit.restarting")
    assert await world.ask() == WHOLE


async def missed(world: World, left_s: float, **how: Any) -> float:
    """A request that misses its deadline; returns by how much it was told too late."""
    due_s = world.clock.monotonic_s() + left_s
    with pytest.raises(DeadlineMissed):
        await world.ask(deadline_s=due_s, **how)
    return world.clock.monotonic_s() - due_s


def test_a_deadline_is_told_at_its_moment_and_the_engine_is_given_up_later() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 0))
        assert await missed(world, 1.0) == 0.0
        assert world.scheduler.snapshot().running == 0
        assert world.primary.is_alive, "it has as long as it would have had for its answer"
        await assert_it_was_a_hang(world)

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["deadline", "ok"]


def test_nobody_is_sent_to_an_engine_that_is_still_stopping() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 0))
        await missed(world, 1.0)
        streams = world.primary.streams
        assert await took(world, world.ask()) == pytest.approx(0.12)
        assert world.primary.streams == streams
        await assert_it_was_a_hang(world)

    world = in_world(use)
    assert [event.engine for event in world.of(RequestFinished)] == ["", "standby", "primary"]


def test_with_one_engine_alone_the_next_request_gets_it_as_soon_as_it_is_back() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 0))
        await missed(world, 1.0)
        assert await took(world, world.ask()) == pytest.approx(FIRST_S - 1.0 + 0.3, abs=0.2)

    world = in_world(use, engines=1)
    assert [event.outcome for event in world.of(RequestFinished)] == ["deadline", "ok"]


def test_the_deadline_of_a_whole_answer_is_told_at_its_moment_in_mid_stream_too() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 4))
        assert await missed(world, 2.0, is_whole=True) == 0.0
        await assert_it_was_a_hang(world)

    in_world(use)


def test_a_reader_who_leaves_is_let_go_at_once_and_the_failure_is_the_engines() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 3))
        answer = world.scheduler.submit(PROMPT, TEN)
        ids = answer.__aiter__()
        assert [await anext(ids) for _ in range(3)] == WHOLE[:3]
        assert await took(world, answer.aclose()) == 0.0
        assert world.scheduler.snapshot().running == 0
        await assert_it_was_a_hang(world)

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["cancelled", "ok"]


def test_the_first_token_of_a_hedged_request_waits_for_nobodys_end() -> None:
    async def use(world: World) -> None:
        for _ in range(25):
            await world.ask()
        world.primary.inject(Fault("deaf", 0))
        answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
        async with aclosing(answer):
            assert [token async for token in answer] == WHOLE
        assert answer.record.first_token_ms == pytest.approx(3 * 30.0 + 30.0, abs=1.0)
        assert (answer.record.engine, answer.record.is_hedged, answer.record.failovers) == ("standby", True, 0)
        assert world.scheduler.snapshot().running == 0
        await assert_it_was_a_hang(world)
        assert world.scheduler.snapshot().circuits["standby"].counters.failures == 0

    world = in_world(use)
    assert world.of(StreamMoved) == []


def test_a_deaf_second_engine_does_not_hold_back_the_first_one() -> None:
    async def use(world: World) -> None:
        for _ in range(25):
            await world.ask()
        world.primary.inject(Fault("slow", 0))
        world.standby.inject(Fault("deaf", 0))
        answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
        assert [token async for token in answer] == WHOLE
        assert answer.record.first_token_ms == pytest.approx(300.0, abs=1.0)
        await asyncio.sleep(FIRST_S + 1.0)
        assert circuit(world, "standby").counters.failures == 1

    in_world(use)


@pytest.mark.parametrize("others", [0, 1], ids=["no other stream", "another low stream"])
def test_an_urgent_request_does_not_wait_for_a_cut_engine_that_hangs(others: int) -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 3))
        if not others:
            world.scheduler.force("standby", Mode.FORCED_OPEN)
        low = [asyncio.create_task(world.ask(sampling=LONG, priority=Priority.LOW)) for _ in range(1 + others)]
        await asyncio.sleep(0.5)
        waited_s = await took(world, world.ask(priority=Priority.CRITICAL, sampling=Sampling(max_tokens=1)))
        if others:  # the other stream makes room instead
            assert waited_s == pytest.approx(0.25 + 0.03, abs=0.02)
        else:
            assert waited_s == pytest.approx(TOKEN_S - 0.45 + 0.3, abs=0.2)
        assert [await task for task in low] == [expected_ids(PROMPT, LONG)] * len(low)
        assert circuit(world).counters.failures == 1

    world = in_world(use)
    assert {event.outcome for event in world.of(RequestFinished)} == {"ok"}


def test_a_cut_stream_that_has_no_token_yet_keeps_its_deadline_beside_a_hung_engine() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 0))
        due_s = world.clock.monotonic_s() + 0.6
        low = asyncio.create_task(world.ask(priority=Priority.LOW, deadline_s=due_s))
        await asyncio.sleep(0.5)
        urgent = asyncio.create_task(world.ask(priority=Priority.CRITICAL))
        with pytest.raises(DeadlineMissed):
            await low
        assert world.clock.monotonic_s() == pytest.approx(due_s, abs=0.01)
        assert await urgent == WHOLE

    world = in_world(use, engines=1)
    assert len(world.of(RequestFinished, RequestRejected)) == 2


def test_an_engine_that_hangs_while_nobody_reads_is_found_out() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 16))
        ids = world.scheduler.submit(PROMPT, LONG).__aiter__()
        got = [await anext(ids)]
        await asyncio.sleep(TOKEN_S + 1.0)
        assert circuit(world).counters.failures == 1
        got += [token async for token in ids]
        assert got == expected_ids(PROMPT, LONG)

    in_world(use, unread_tokens=16)


def test_an_engine_that_takes_its_time_to_stop_is_no_failure() -> None:
    class Slow(ScriptedEngine):
        """Looks for a cancel after each step of six tenths of a second."""

        async def generate(
            self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
        ) -> AsyncGenerator[int, None]:
            if tuple(prompt_ids) == (9,):
                async for token in super().generate(prompt_ids, accepted_ids, sampling):
                    yield token
                return
            for token in expected_ids(prompt_ids, sampling, accepted_ids):
                step = asyncio.create_task(asyncio.sleep(0.6))
                try:
                    await asyncio.shield(step)
                except asyncio.CancelledError:
                    await step
                    raise
                yield token

    async def use(world: World) -> None:
        for engine in (world.primary, world.standby):
            engine.__class__ = Slow
        assert await missed(world, 0.1) == 0.0
        world.scheduler.force("standby", Mode.FORCED_OPEN)
        one = Sampling(max_tokens=1)
        assert await took(world, world.ask(sampling=one)) == pytest.approx(0.5 + 0.6)
        await asyncio.sleep(10.0)
        assert (circuit(world).counters.failures, world.primary.kills) == (0, 0)

    in_world(use)


def test_closing_ends_an_engine_that_is_still_stopping() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 0))
        world.standby.inject(Fault("deaf", 2))
        await missed(world, 1.0)
        reading = asyncio.create_task(world.ask())
        await asyncio.sleep(1.0)
        assert await took(world, world.scheduler.close()) == 0.0
        with pytest.raises(EngineError, match="being closed"):
            await reading
        assert_nothing_is_left()

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["deadline", "failed"]


def test_a_prompt_that_hangs_engines_is_found_out_although_nobody_waits_for_it() -> None:
    async def use(world: World) -> None:
        for _ in range(2):
            world.primary.inject(Fault("deaf", 0))
            assert await missed(world, 1.0, prompt=[6, 6, 6]) == 0.0
            await asyncio.sleep(FIRST_S + 1.0)
        with pytest.raises(PoisonRequest):
            await world.ask(prompt=[6, 6, 6])
        assert await world.ask() == WHOLE

    world = in_world(use)
    assert len(world.of(RequestPoisoned)) == 1


def test_a_prompt_that_the_other_engine_answered_is_not_blamed_for_a_hang() -> None:
    async def use(world: World) -> None:
        for _ in range(3):
            for _ in range(60):
                await world.ask()
            world.primary.inject(Fault("deaf", 0))
            assert await world.ask(prompt=[6, 6, 6], priority=Priority.CRITICAL)
            await asyncio.sleep(FIRST_S + 1.0)
        assert circuit(world).counters.failures == 3

    world = in_world(use)
    assert world.of(RequestPoisoned) == []


# --- calls that answer in one piece ---


class Thinking(ScriptedEngine):
    """It has logits. `is_deaf`: they never come, until it is killed."""

    is_deaf = False

    async def logits(self, prompt_ids: Sequence[int]) -> list[float]:
        async with aclosing(self.generate(prompt_ids, (), Sampling(max_tokens=1))) as ids:
            async for _ in ids:
                pass
        return [float(token) for token in prompt_ids]


def think(world: World) -> None:
    for engine in (world.primary, world.standby):
        engine.__class__ = Thinking


def test_a_tensor_request_is_told_at_its_deadline_and_the_hang_is_counted() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 0))
        due_s = world.clock.monotonic_s() + 2.0
        with pytest.raises(DeadlineMissed, match="not complete"):
            await world.scheduler.logits(PROMPT, deadline_s=due_s)
        assert world.clock.monotonic_s() == due_s
        await assert_it_was_a_hang(world)

    world = in_world(use, prepare=think)
    assert [event.outcome for event in world.of(RequestFinished)] == ["deadline", "ok"]


def test_tensor_requests_do_not_miss_one_deadline_after_another_on_a_slow_engine() -> None:
    async def use(world: World) -> None:
        for _ in range(10):
            world.primary.inject(Fault("hang", 0))
            with suppress(DeadlineMissed):
                await world.scheduler.logits(PROMPT, deadline_s=world.clock.monotonic_s() + 3.0)
            await asyncio.sleep(1.0)

    world = in_world(use, prepare=think)
    assert [event.outcome for event in world.of(RequestFinished)] == ["deadline"] + ["ok"] * 9


@pytest.mark.parametrize("kind", ["hang", "deaf"])
def test_a_tensor_request_moves_when_its_engine_was_silent_for_too_long(kind: Any) -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault(kind, 0))
        waited_s = await took(world, world.scheduler.logits(PROMPT))
        assert waited_s == pytest.approx(FIRST_S + 0.03, abs=0.01)
        await assert_it_was_a_hang(world)

    world = in_world(use, prepare=think)
    assert [(event.outcome, event.failovers) for event in world.of(RequestFinished)] == [("ok", 1), ("ok", 0)]


def test_a_caller_of_logits_who_leaves_is_let_go_at_once() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("deaf", 0))
        task = asyncio.create_task(world.scheduler.logits(PROMPT))  # type: ignore[arg-type]
        await asyncio.sleep(1.0)
        task.cancel()
        assert await took(world, asyncio.wait({task})) == 0.0
        await assert_it_was_a_hang(world)

    world = in_world(use, prepare=think)
    assert [event.outcome for event in world.of(RequestFinished)] == ["cancelled", "ok"]


def test_an_unknown_canary_is_not_learned_from_an_engine_that_hangs() -> None:
    async def use(world: World) -> None:
        world.standby.inject(Fault("deaf", 0))
        await asyncio.sleep(FIRST_S + 5.0)
        assert circuit(world, "standby").counters.failures == 1
        assert await world.ask() == WHOLE

    from kensho.resilience.guard import Canary

    in_world(use, canary=Canary([9]), before_s=0.5)
