"""Loaded models that are closed to make room or because their graph rots, and what is refused. Virtual time."""

import asyncio

import pytest
from serving_world import COMPILE_S, MIB, World

from kensho.app import verifying
from kensho.app.serving import LOOK_EVERY_S, Serving
from kensho.app.tiers import HOST_BYTES, IDLE_CLOSE_S, RESERVE_BYTES
from kensho.app.verifying import SUSPECT_EVERY_S
from kensho.base.errors import NotEnoughMemory
from kensho.base.events import CanaryFinished
from kensho.base.structs import replace


def test_the_fourth_model_closes_the_one_used_longest_ago_but_nobody_waits_for_that(world: World) -> None:
    world.opener.compiled = set("abcd")

    async def scene(serving: Serving) -> None:
        for name in "abca":
            await world.ask(serving, name)
        began_s = world.clock.monotonic_s()
        async with serving.use(world.model("d")):
            assert world.clock.monotonic_s() - began_s < 0.06  # its own start, no other's end
        await asyncio.sleep(0.1)
        assert [served.graph.model for served in world.opener.running] == ["a", "c", "d"]
        await world.ask(serving, "b")

    world.run(scene)
    assert world.closed() == ["b", "c"]


def test_a_pinned_model_stays_for_hours_and_an_idle_one_goes(world: World) -> None:
    world.opener.compiled = {"kept", "other"}

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("kept"))
        await world.ask(serving, "other")
        await asyncio.sleep(IDLE_CLOSE_S - 2 * LOOK_EVERY_S)
        assert len(world.opener.running) == 2
        await asyncio.sleep(4 * LOOK_EVERY_S)
        assert [served.graph.model for served in world.opener.running] == ["kept"]
        await asyncio.sleep(10 * IDLE_CLOSE_S)
        assert serving.is_loaded(world.model("kept"))

    world.run(scene)
    assert world.closed() == ["other"]


def test_a_model_that_answers_is_never_closed_however_long_it_takes(world: World) -> None:
    world.opener.compiled = set("abcd")

    async def scene(serving: Serving) -> None:
        async with serving.use(world.model("a")) as served:
            for name in "bcd":
                await world.ask(serving, name)
            await asyncio.sleep(2 * IDLE_CLOSE_S)
            assert served in world.opener.running

    world.run(scene)


def test_what_cannot_fit_is_refused_with_numbers_before_anything_is_loaded(world: World) -> None:
    world.opener.compiled = {"m"}
    world.machine_bytes = RESERVE_BYTES + HOST_BYTES

    async def scene(serving: Serving) -> None:
        with pytest.raises(NotEnoughMemory, match=r"need 77.6 MB, 67.1 MB may be taken"):
            await world.ask(serving)
        assert world.opener.running == []
        assert not serving.is_loaded(world.model("m"))
        world.machine_bytes *= 2
        assert await world.ask(serving) == "mapped"

    world.run(scene)
    assert world.opener.released == 1


def test_what_is_idle_makes_room_for_what_is_asked_and_what_is_in_use_does_not(world: World) -> None:
    world.opener.compiled = set("abc")
    one = HOST_BYTES + 10 * MIB

    async def scene(serving: Serving) -> None:
        async with serving.use(world.model("a")):
            await world.ask(serving, "b")
            assert await world.ask(serving, "c") == "mapped"
            assert [served.graph.model for served in world.opener.running] == ["a", "c"]
            async with serving.use(world.model("c")):
                with pytest.raises(NotEnoughMemory):
                    await world.ask(serving, "b")

    world.run(scene, model_memory_bytes=2 * one + RESERVE_BYTES)
    assert world.closed() == ["b"]


def test_under_memory_pressure_idle_models_are_closed_one_by_one(world: World) -> None:
    world.opener.compiled = set("abc")

    async def scene(serving: Serving) -> None:
        for name in "abc":
            await world.ask(serving, name)
        world.machine_bytes = RESERVE_BYTES + HOST_BYTES + 10 * MIB
        await asyncio.sleep(4 * LOOK_EVERY_S)
        assert [served.graph.model for served in world.opener.running] == ["c"]

    world.run(scene)
    assert world.closed() == ["a", "b"]


VERIFY_EVERY_S = 600.0


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day has ten minutes."""
    monkeypatch.setattr(verifying, "VERIFY_EVERY_S", VERIFY_EVERY_S)


@pytest.mark.usefixtures("often")
def test_a_graph_that_rots_while_it_is_loaded_ends_its_engines_at_once_and_is_made_anew(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        async with serving.use(world.model("m")) as served:
            await asyncio.sleep(VERIFY_EVERY_S + 2 * LOOK_EVERY_S)
            assert world.opener.verified == ["m"]
            world.opener.damaged = {"m"}
            await asyncio.sleep(VERIFY_EVERY_S + 2 * LOOK_EVERY_S)
            assert served not in world.opener.running  # though a request is using it
            assert world.opener.compiled == set()
        assert await world.ask(serving) == "raw"
        await asyncio.sleep(COMPILE_S + 1)
        assert await world.ask(serving) == "mapped"

    world.run(scene)
    assert world.opener.invalidated == ["weights.bin of the compiled graph is damaged"]


def test_a_graph_on_which_an_engine_computes_wrongly_is_hashed_at_once_and_not_all_the_time(world: World) -> None:
    world.opener.compiled = {"m"}
    failed = CanaryFinished(engine="standby", model="m", outcome="failed: other ids", failure="mismatch", seconds=0.1)

    async def scene(serving: Serving) -> None:
        await world.ask(serving)
        for _ in range(10):
            world.opener.emit(failed)
            await asyncio.sleep(2 * LOOK_EVERY_S)
        assert len(world.opener.verified) == 2
        await asyncio.sleep(2 * SUSPECT_EVERY_S)
        assert len(world.opener.verified) == 3, "the last doubt"
        world.opener.emit(replace(failed, failure="hang"))
        await asyncio.sleep(SUSPECT_EVERY_S)
        assert len(world.opener.verified) == 3
        world.opener.damaged = {"m"}
        world.opener.emit(failed)
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert serving.loaded() == []

    world.run(scene)
    assert len(world.opener.invalidated) == 1


@pytest.mark.usefixtures("often")
def test_a_pinned_model_whose_graph_rots_is_loaded_again_without_being_asked(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.opener.damaged = {"m"}
        await asyncio.sleep(VERIFY_EVERY_S + 2 * LOOK_EVERY_S + COMPILE_S)
        assert world.opener.tiers == ["mapped"]
        await asyncio.sleep(IDLE_CLOSE_S + 2 * LOOK_EVERY_S)
        assert serving.is_loaded(world.model("m"))

    world.run(scene)
    assert world.opener.compiles == 1


@pytest.mark.usefixtures("often")
def test_loaded_graphs_are_verified_one_after_the_other_once_a_day(world: World) -> None:
    world.opener.compiled = {"a", "b"}

    async def scene(serving: Serving) -> None:
        for name in "ab":
            await serving.pin(world.model(name))
        await asyncio.sleep(VERIFY_EVERY_S - 1)
        assert world.opener.verified == []
        await asyncio.sleep(3 * LOOK_EVERY_S)
        assert world.opener.verified == ["a", "b"]
        await asyncio.sleep(VERIFY_EVERY_S - 4 * LOOK_EVERY_S)
        assert world.opener.verified == ["a", "b"]

    world.run(scene)


def test_a_cached_graph_that_answers_otherwise_than_it_did_is_dropped_and_raw_answers(world: World) -> None:
    world.opener.compiled, world.opener.unfit = {"m"}, {"m"}

    async def scene(serving: Serving) -> None:
        assert await world.ask(serving) == "raw"
        assert world.opener.invalidated == [
            "no engine starts with it: it answers otherwise than when it was made",
        ]

    world.run(scene)
