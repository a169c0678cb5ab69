"""Models that are loaded before anybody asks: they answer at once, and are in nobody's way. Virtual time."""

import asyncio

import pytest
from serving_world import COMPILE_S, START_S, STEP_S, World

from kensho.app.serving import LOOK_EVERY_S, Serving
from kensho.app.tiers import HOST_BYTES, IDLE_CLOSE_S, RESERVE_BYTES
from kensho.app.warmup import STAY_S
from kensho.base.errors import NotEnoughMemory


def test_a_warmed_model_answers_at_once_from_its_compiled_graph(world: World) -> None:
    async def scene(serving: Serving) -> None:
        assert (await serving.warm(world.model("m"), is_kept=False)).tier == "mapped"
        began_s = world.clock.monotonic_s()
        assert await world.ask(serving, seconds=0) == "mapped"
        assert world.clock.monotonic_s() == began_s

    world.run(scene)
    assert world.opener.compiles == 1


def test_a_request_stops_the_compile_of_a_guess_at_once_and_it_goes_on_afterwards(world: World) -> None:
    world.opener.compiled = {"b"}

    async def scene(serving: Serving) -> None:
        began_s = world.clock.monotonic_s()
        warming = asyncio.create_task(serving.warm(world.model("a"), is_kept=False))
        await asyncio.sleep(1)
        assert not world.opener.is_held
        asking = asyncio.create_task(world.ask(serving, "b", seconds=30))
        await asyncio.sleep(0)
        assert world.opener.is_held
        assert await asking == "mapped"
        assert not world.opener.is_held
        await warming
        assert world.clock.monotonic_s() - began_s == pytest.approx(COMPILE_S + 30 + 2 * START_S, abs=2 * STEP_S)

    world.run(scene)
    assert world.opener.held_s == pytest.approx(30, abs=2 * STEP_S)


def test_a_request_ends_the_start_of_a_guess_at_once_and_it_starts_again_afterwards(world: World) -> None:
    world.opener.compiled = {"a", "b"}

    async def scene(serving: Serving) -> None:
        warming = asyncio.create_task(serving.warm(world.model("a"), is_kept=False))
        await asyncio.sleep(START_S / 2)
        began_s = world.clock.monotonic_s()
        async with serving.use(world.model("b")):
            assert world.clock.monotonic_s() - began_s == pytest.approx(START_S)
            await asyncio.sleep(10)
            assert [served.graph.model for served in world.opener.running] == ["b"]
        await warming
        assert [served.graph.model for served in world.opener.running] == ["b", "a"]

    world.run(scene)


def test_a_request_for_the_model_that_is_being_warmed_disturbs_nothing(world: World) -> None:
    async def scene(serving: Serving) -> None:
        warming = asyncio.create_task(serving.warm(world.model("m"), is_kept=False))
        await asyncio.sleep(1)
        began_s = world.clock.monotonic_s()
        assert await world.ask(serving, seconds=0) == "raw"
        assert world.clock.monotonic_s() - began_s < 0.2
        await warming
        await asyncio.sleep(COMPILE_S)
        assert await world.ask(serving) == "mapped"

    world.run(scene)
    assert (world.opener.compiles, world.opener.held_s) == (1, 0)


def test_a_guess_closes_nothing_and_goes_first_when_somebody_needs_the_place(world: World) -> None:
    world.opener.compiled = set("abcd")

    async def scene(serving: Serving) -> None:
        await world.ask(serving, "a")
        await world.ask(serving, "b")
        await serving.warm(world.model("c"), is_kept=False)
        with pytest.raises(NotEnoughMemory, match="3 models are loaded"):
            await serving.warm(world.model("d"), is_kept=True)
        assert world.closed() == []
        await world.ask(serving, "d")
        await asyncio.sleep(0.1)
        assert [served.graph.model for served in world.opener.running] == ["a", "b", "d"]

    world.run(scene)
    assert world.closed() == ["c"]


def test_a_guess_takes_no_memory_that_is_not_free(world: World) -> None:
    world.opener.compiled = {"a", "b"}

    async def scene(serving: Serving) -> None:
        await world.ask(serving, "a")
        assert serving.room().free_bytes < HOST_BYTES
        with pytest.raises(NotEnoughMemory, match=r"need 77.6 MB"):
            await serving.warm(world.model("b"), is_kept=True)
        assert serving.is_loaded(world.model("a"))

    world.run(scene, model_memory_bytes=2 * HOST_BYTES + RESERVE_BYTES)


def test_a_guess_stays_for_its_hour_and_one_that_was_right_then_goes_like_any_other(world: World) -> None:
    world.opener.compiled = {"a", "b"}

    async def scene(serving: Serving) -> None:
        for name in "ab":
            await serving.warm(world.model(name), is_kept=False)
        await asyncio.sleep(STAY_S / 2)
        await world.ask(serving, "b")
        await asyncio.sleep(IDLE_CLOSE_S + 2 * LOOK_EVERY_S)
        assert world.closed() == ["b"]
        await asyncio.sleep(STAY_S / 2 - IDLE_CLOSE_S - 20 * LOOK_EVERY_S)
        assert world.closed() == ["b"]
        await asyncio.sleep(30 * LOOK_EVERY_S)
        assert world.closed() == ["b", "a"]

    world.run(scene)


def test_a_named_model_that_is_warmed_stays(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        await serving.warm(world.model("m"), is_kept=True)
        await asyncio.sleep(3 * IDLE_CLOSE_S)
        assert serving.is_loaded(world.model("m"))

    world.run(scene)


def test_closing_ends_a_guess_that_is_under_way(world: World) -> None:
    async def scene(serving: Serving) -> None:
        warming = asyncio.create_task(serving.warm(world.model("m"), is_kept=False))
        await asyncio.sleep(1)
        warming.cancel()
        await asyncio.wait([warming])
        assert warming.cancelled()

    world.run(scene)
    assert world.opener.compiles == 0
