"""Loaded models over hours of virtual time: how they go over to the version that the store has now. No process."""

import asyncio
import fcntl
import os

import pytest
from serving_world import COMPILE_S, GRAPH_BYTES, MIB, START_S, World

from kensho.app.activity import loaded_versions
from kensho.app.places import Successor
from kensho.app.serving import DRAIN_S, LOOK_EVERY_S, Serving
from kensho.app.successors import RETRY_S, ROOM_RETRY_S, next_step
from kensho.app.tiers import HOST_BYTES, IDLE_CLOSE_S, PACK_TOKENS, RESERVE_BYTES
from kensho.base.errors import CompileFailed, EngineError
from kensho.base.events import ModelClosed, VersionChanged, VersionKept

TRIED = Successor("2", since_wall_s=0.0)
FAILED = Successor("2", since_wall_s=0.0, is_being_tried=False, error=EngineError("no"), retry_at_s=100.0)


@pytest.mark.parametrize(
    ("current", "successor", "now_s", "step"),
    [
        ("1", None, 0.0, "stay"),
        ("2", None, 0.0, "move"),
        ("2", TRIED, 1e9, "stay"),
        ("2", FAILED, 99.9, "stay"),
        ("2", FAILED, 100.0, "move"),
        ("3", FAILED, 0.0, "move"),
        ("3", TRIED, 0.0, "move"),
        ("1", TRIED, 0.0, "settle"),
        ("1", FAILED, 0.0, "settle"),
        (None, None, 0.0, "stay"),
        (None, FAILED, 1e9, "stay"),
    ],
)
def test_what_the_store_says_last_counts(
    current: str | None, successor: Successor | None, now_s: float, step: str
) -> None:
    assert next_step("1", current, successor, now_s) == step


def changed(world: World) -> list[tuple[str, str]]:
    return [(event.from_version, event.to_version) for event in world.events if isinstance(event, VersionChanged)]


def kept(world: World) -> list[tuple[str, str, str]]:
    return [
        (event.version, event.wanted_version, event.reason) for event in world.events if isinstance(event, VersionKept)
    ]


async def version(world: World, serving: Serving, name: str = "m", seconds: float = 0.0) -> str:
    """Of one answer."""
    async with serving.use(world.model(name)) as served:
        await asyncio.sleep(seconds)
        return served.graph.version


def is_leased(world: World, version: str) -> bool:
    fd = os.open(world.folder / "m" / version, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_requests_go_over_without_waiting_and_what_runs_ends_on_the_old_version(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        await version(world, serving)
        async with serving.use(world.model("m")) as running:
            world.now_has("2")
            began_s = world.clock.monotonic_s()
            assert await version(world, serving) == "1"
            assert world.clock.monotonic_s() == began_s, "nobody waits"
            await asyncio.sleep(COMPILE_S - 0.1)
            assert (await version(world, serving), world.opener.versions) == ("1", ["1"])
            await asyncio.sleep(0.3)
            assert (await version(world, serving), world.opener.versions) == ("2", ["1", "2"])
            await asyncio.sleep(IDLE_CLOSE_S / 2)
            assert running.graph.version == "1" and running in world.opener.running
            assert is_leased(world, "1") and is_leased(world, "2")
        await asyncio.sleep(0.1)
        assert world.opener.versions == ["2"]
        assert is_leased(world, "2") and not is_leased(world, "1")

    world.run(scene)
    assert changed(world) == [("1", "2")] and kept(world) == []
    assert [event.version for event in world.events if isinstance(event, ModelClosed)] == ["1"]


def test_a_pinned_model_goes_over_though_nobody_asks_and_stays_pinned(world: World) -> None:
    world.opener.compiled = {"m", "m 2"}

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.now_has("2")
        await asyncio.sleep(LOOK_EVERY_S + 0.2)
        assert world.opener.versions == ["2"]
        await asyncio.sleep(10 * IDLE_CLOSE_S)
        assert world.opener.versions == ["2"]

    world.run(scene)


def test_the_store_is_read_only_when_it_has_changed(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        for _ in range(100):
            await version(world, serving, seconds=1)
        assert world.reads == 1
        world.now_has("1", "another model")
        for _ in range(100):
            await version(world, serving, seconds=1)
        assert world.reads == 2

    world.run(scene)


def test_going_back_while_the_new_version_is_prepared_gives_that_up(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.now_has("2")
        await version(world, serving)
        await asyncio.sleep(1)
        assert loaded_versions(serving)["m"].wanted_version == "2"
        world.now_has("1")
        await version(world, serving)
        await asyncio.sleep(3600)
        assert (world.opener.versions, loaded_versions(serving)["m"].wanted_version) == (["1"], "")

    world.run(scene)
    assert (world.opener.compiles, changed(world), kept(world)) == (0, [], [])


def test_a_third_version_overtakes_the_second(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        for newest in ("2", "3"):
            world.now_has(newest)
            await version(world, serving)
            await asyncio.sleep(COMPILE_S / 2)
        await asyncio.sleep(COMPILE_S)
        assert world.opener.versions == ["3"]
        assert not is_leased(world, "2")

    world.run(scene)
    assert changed(world) == [("1", "3")]


def test_a_version_that_does_not_start_leaves_the_old_one_answering_and_is_tried_again(world: World) -> None:
    world.opener.compiled, world.opener.broken = {"m"}, {"m 2"}

    async def scene(serving: Serving) -> None:
        await version(world, serving)
        world.now_has("2")
        await version(world, serving)
        await asyncio.sleep(2 * COMPILE_S)
        said = loaded_versions(serving)["m"]
        assert (said.version, said.wanted_version, said.kept_because) == ("1", "2", "m 2 does not start")
        assert not is_leased(world, "2")
        await asyncio.sleep(4 * RETRY_S)
        assert await version(world, serving) == "1", "it is not closed for being idle"
        assert len(kept(world)) == 1, "it is told once"
        world.opener.broken = set()
        await asyncio.sleep(RETRY_S + 2 * COMPILE_S)
        assert (await version(world, serving), world.opener.versions) == ("2", ["2"])

    world.run(scene)
    assert kept(world) == [("1", "2", "m 2 does not start")]


def test_a_version_that_cannot_be_compiled_answers_exactly_and_slowly_as_any_would(world: World) -> None:
    world.opener.compiled, world.opener.errors = {"m"}, [CompileFailed("no form fits")]

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.now_has("2")
        await asyncio.sleep(2 * LOOK_EVERY_S + 2 * COMPILE_S)
        assert await version(world, serving) == "2"

    world.run(scene)


def test_a_damaged_version_is_not_gone_over_to_before_it_is_mended(world: World) -> None:
    world.opener.compiled, world.damaged = {"m", "m 2"}, {"2"}

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.now_has("2")
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert await version(world, serving) == "1"
        world.damaged = set()
        await asyncio.sleep(RETRY_S + LOOK_EVERY_S)
        assert await version(world, serving) == "2"

    world.run(scene)
    assert kept(world) == [("1", "2", "m 2 is damaged")]


def test_a_disk_that_is_away_changes_nothing(world: World) -> None:
    world.opener.compiled = {"m", "m 2"}

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.is_away = True
        world.now_has("2")
        await asyncio.sleep(3 * LOOK_EVERY_S)
        assert await version(world, serving) == "1"
        world.is_away = False
        world.now_has("2")
        await asyncio.sleep(2 * LOOK_EVERY_S)

    world.run(scene)


def room_for(models: int) -> int:
    """For so many mapped ones."""
    return RESERVE_BYTES + models * (HOST_BYTES + 10 * MIB) + MIB


def test_where_both_do_not_fit_the_old_version_goes_first_once_its_streams_have_ended(world: World) -> None:
    world.opener.compiled, world.machine_bytes = {"m", "m 2"}, room_for(1)

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        async with serving.use(world.model("m")):
            world.now_has("2")
            await asyncio.sleep(10 * ROOM_RETRY_S)
            began_s = world.clock.monotonic_s()
            assert await version(world, serving) == "1"
            assert world.clock.monotonic_s() - began_s <= DRAIN_S
            assert world.opener.versions == ["1"]
        await asyncio.sleep(ROOM_RETRY_S + LOOK_EVERY_S)
        assert world.opener.versions == ["2"]
        assert is_leased(world, "2") and not is_leased(world, "1")

    world.run(scene)
    (told,) = kept(world)
    assert told[:2] == ("1", "2") and "no room" in told[2]


def test_who_comes_in_that_moment_waits_for_the_new_version_and_no_longer(world: World) -> None:
    world.opener.compiled, world.machine_bytes = {"m", "m 2"}, room_for(1)

    async def ask_on(serving: Serving) -> set[str]:
        found = set()
        for _ in range(100):
            began_s = world.clock.monotonic_s()
            found.add(await version(world, serving, seconds=0.5))
            assert world.clock.monotonic_s() - began_s < 1.0 + 2 * START_S
        return found

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.now_has("2")
        found = await asyncio.gather(*(ask_on(serving) for _ in range(3)))
        assert found == [{"1", "2"}] * 3, "there is never a moment in which nobody asks"
        assert world.opener.versions == ["2"]

    world.run(scene)


def test_the_old_version_comes_back_where_the_new_one_does_not_start_in_its_place(world: World) -> None:
    world.opener.compiled, world.opener.broken, world.machine_bytes = {"m", "m 2"}, {"m 2"}, room_for(1)

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.now_has("2")
        await version(world, serving)
        await asyncio.sleep(2 * COMPILE_S)
        assert world.opener.versions == ["1"]
        assert is_leased(world, "1") and not is_leased(world, "2")
        assert loaded_versions(serving)["m"].kept_because == "m 2 does not start"
        await asyncio.sleep(10 * IDLE_CLOSE_S)
        assert await version(world, serving) == "1"

    world.run(scene)
    assert kept(world) == [("1", "2", "m 2 does not start")]


def test_to_warm_a_model_waits_for_the_version_that_the_store_has(world: World) -> None:
    world.opener.compiled = {"m"}

    async def scene(serving: Serving) -> None:
        await version(world, serving)
        world.now_has("2")
        await serving.pin(world.model("m"))
        assert await version(world, serving) == "2"
        world.now_has("3")
        world.opener.broken = {"m 3"}
        with pytest.raises(EngineError, match="m 3 does not start"):
            await serving.pin(world.model("m"))
        assert await version(world, serving) == "2"

    world.run(scene)
    assert world.opener.compiles == 2


def test_tokens_that_were_answered_are_worth_a_better_tier_of_the_new_version_too(world: World) -> None:
    world.opener.compiled = {"m", "m 2"}

    async def scene(serving: Serving) -> None:
        await world.ask(serving, tokens=PACK_TOKENS)
        world.now_has("2")
        await world.ask(serving)
        await asyncio.sleep(3 * LOOK_EVERY_S)
        assert (world.opener.versions, world.opener.tiers) == (["2"], ["packed"])

    world.run(scene)


@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.0015, 1.0, COMPILE_S + 0.01])
@pytest.mark.parametrize("fits", [True, False])
def test_closing_in_the_middle_leaves_nothing(world: World, after_s: float, fits: bool) -> None:
    world.opener.compiled = {"m"} if after_s else {"m", "m 2"}
    world.machine_bytes = room_for(2) + GRAPH_BYTES if fits else room_for(1)

    async def scene(serving: Serving) -> None:
        await serving.pin(world.model("m"))
        world.now_has("2")
        await version(world, serving)
        await asyncio.sleep(after_s)

    world.run(scene)
    assert not is_leased(world, "1")


def test_room_is_asked_of_idle_models_before_the_old_version_is_ended(world: World) -> None:
    world.opener.compiled, world.machine_bytes = {"m", "m 2", "other"}, room_for(2)

    async def scene(serving: Serving) -> None:
        await version(world, serving, "other")
        async with serving.use(world.model("m")):
            world.now_has("2")
            await asyncio.sleep(2 * LOOK_EVERY_S)
            assert await version(world, serving) == "2"

    world.run(scene)
    assert world.closed() == ["other", "m"]
