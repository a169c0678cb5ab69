"""Loaded models over hours of virtual time: when a tier changes, and what an end waits for. No process."""

import asyncio

import pytest
from serving_world import COMPILE_S, GRAPH_BYTES, World

from kensho.app.serving import LOOK_EVERY_S, RETRY_S, Serving
from kensho.app.tiers import HOST_BYTES, IDLE_MAPPED_S, PACK_TOKENS, RESERVE_BYTES
from kensho.base.errors import CompileFailed, EngineError, EnginesOff
from kensho.base.events import TierKept


def test_the_first_answer_comes_before_the_compile_ends_and_later_ones_from_the_better_tier(world: World) -> None:
    async def scene(serving: Serving) -> None:
        began_s = world.clock.monotonic_s()
        async with serving.use(world.model("m")) as served:
            assert world.clock.monotonic_s() - began_s < 0.2
            assert served.graph.tier == "raw"
            await asyncio.sleep(COMPILE_S + 1)
            assert world.opener.tiers == ["raw", "mapped"]  # who streams keeps its engine
            assert await world.ask(serving) == "mapped"
            assert world.opener.tiers == ["raw", "mapped"]
        await asyncio.sleep(0.1)
        assert world.opener.tiers == ["mapped"]

    world.run(scene)
    assert world.changes() == [("raw", "mapped")]


def test_many_first_requests_at_once_load_and_compile_once(world: World) -> None:
    async def scene(serving: Serving) -> None:
        assert await asyncio.gather(*(world.ask(serving) for _ in range(5))) == ["raw"] * 5
        await asyncio.sleep(COMPILE_S)
        assert world.opener.compiles == 1

    world.run(scene)


def test_who_leaves_during_a_load_does_not_end_it(world: World) -> None:
    async def scene(serving: Serving) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.12):
                await world.ask(serving)
        assert serving.loaded() == []
        await asyncio.sleep(0.1)
        assert [place.loaded.users for place in serving.loaded()] == [0]
        await world.ask(serving, "other", seconds=0)
        assert world.opener.started == ["raw", "raw"]

    world.run(scene)


def test_a_load_that_fails_is_told_to_all_who_wait_and_tried_again_by_the_next(world: World) -> None:
    async def scene(serving: Serving) -> None:
        world.opener.off = {"m"}
        errors = await asyncio.gather(*(world.ask(serving) for _ in range(3)), return_exceptions=True)
        assert [type(error) for error in errors] == [EnginesOff] * 3
        assert len(world.opener.started) == 1
        world.opener.off = set()
        assert await world.ask(serving) == "raw"

    world.run(scene)


def test_closing_ends_a_load_and_says_so_to_those_who_wait(world: World) -> None:
    async def scene(serving: Serving) -> None:
        asking = asyncio.create_task(world.ask(serving))
        await asyncio.sleep(0.05)
        await serving.close()
        with pytest.raises(EngineError, match="being closed"):
            await asking

    world.run(scene)


def test_a_compile_that_fails_leaves_the_raw_tier_answering_and_is_tried_again_later(world: World) -> None:
    world.opener.errors = [CompileFailed("no form fits")]

    async def scene(serving: Serving) -> None:
        await world.ask(serving)
        await asyncio.sleep(COMPILE_S + 1)
        assert await world.ask(serving) == "raw"
        assert [event.reason for event in world.events if isinstance(event, TierKept)] == ["no form fits"]
        await asyncio.sleep(RETRY_S - COMPILE_S - 2 * LOOK_EVERY_S)
        assert world.opener.compiles == 1
        await asyncio.sleep(COMPILE_S + 3 * LOOK_EVERY_S)
        assert await world.ask(serving) == "mapped"

    world.run(scene)


def test_closing_while_compiling_does_not_wait_and_finishing_does(world: World) -> None:
    async def scene(serving: Serving) -> None:
        await world.ask(serving, seconds=0)

    world.run(scene)
    assert (world.opener.compiles, world.clock.monotonic_s() < 1001) == (0, True)

    async def patient(serving: Serving) -> None:
        await scene(serving)
        await serving.finish()

    world.run(patient)
    assert (world.opener.compiles, world.opener.released, world.opener.has_finished) == (1, 1, True)
    assert world.changes() == []  # nobody would ask the new engines


def test_a_stream_of_requests_brings_the_packed_tier_and_silence_takes_it_back(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        assert await world.ask(serving, tokens=PACK_TOKENS - 1) == "mapped"
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert await world.ask(serving, tokens=1) == "mapped"
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert await world.ask(serving) == "packed"
        await asyncio.sleep(IDLE_MAPPED_S + 2 * LOOK_EVERY_S)
        assert world.opener.tiers == ["mapped"]

    world.run(scene)
    assert world.changes() == [("mapped", "packed"), ("packed", "mapped")]


def test_packed_is_given_back_when_memory_gets_short_though_requests_come(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        for _ in range(5):
            await world.ask(serving, tokens=PACK_TOKENS, seconds=5)
        assert world.opener.tiers == ["packed"]
        world.machine_bytes = GRAPH_BYTES + HOST_BYTES + RESERVE_BYTES
        for _ in range(5):
            await world.ask(serving, tokens=PACK_TOKENS, seconds=5)
        assert world.opener.tiers == ["mapped"]

    world.run(scene)


@pytest.mark.parametrize("tier", ["raw", "mapped", "packed"])
def test_a_forced_tier_never_changes(world: World, tier: str) -> None:
    async def scene(serving: Serving) -> None:
        for _ in range(5):
            assert await world.ask(serving, tokens=PACK_TOKENS, seconds=5) == tier
        await asyncio.sleep(IDLE_MAPPED_S + 2 * LOOK_EVERY_S)
        assert world.opener.tiers == [tier]

    world.run(scene, tier=tier)
    assert world.changes() == []
