"""Which graphs a model is opened with, and which of them are dropped."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from serving_world import World

from kensho.app.serving import Serving
from kensho.base.errors import CompileFailed, EngineError, EnginesOff, KenshoError


def failing(world: World, kind: type[KenshoError], **settings: object) -> None:
    """Asking fails so."""

    async def scene(serving: Serving) -> None:
        with pytest.raises(kind) as caught:
            await world.ask(serving)
        assert type(caught.value) is kind
        assert serving.loaded() == []

    world.run(scene, **settings)


def answering(world: World, tier: str) -> Callable[[Serving], Awaitable[None]]:
    async def scene(serving: Serving) -> None:
        assert await world.ask(serving) == tier

    return scene


def test_engines_that_may_not_be_started_cost_a_model_nothing(world: World) -> None:
    world.opener.compiled, world.opener.off = {"m"}, {"m"}
    failing(world, EnginesOff)
    assert (world.opener.started, world.opener.invalidated, world.opener.compiles) == (["mapped"], [], 0)
    world.opener.off = set()
    world.run(answering(world, "mapped"))
    assert world.opener.compiles == 0


@pytest.mark.parametrize("tier", ["mapped", "packed"])
def test_nor_do_they_where_the_tier_is_chosen(world: World, tier: str) -> None:
    world.opener.compiled, world.opener.off = {"m"}, {"m"}
    failing(world, EnginesOff, tier=tier)
    assert (world.opener.started, world.opener.invalidated, world.opener.compiles) == ([tier], [], 0)


def test_without_a_compiled_graph_they_end_the_first_attempt_too(world: World) -> None:
    world.opener.off = {"m"}
    failing(world, EnginesOff)
    assert (world.opener.started, world.opener.compiles) == (["raw"], 0)


def test_a_graph_that_no_engine_starts_with_is_dropped_and_the_exact_one_answers(world: World) -> None:
    world.opener.compiled, world.opener.unfit = {"m"}, {"m"}
    world.run(answering(world, "raw"))
    assert world.opener.started[:2] == ["mapped", "raw"]
    assert len(world.opener.invalidated) == 1


def test_a_model_that_starts_in_no_form_is_tried_in_each_once(world: World) -> None:
    world.opener.compiled, world.opener.broken = {"m"}, {"m"}
    failing(world, EngineError)
    assert world.opener.started == ["mapped", "raw", "mapped"]
    assert (len(world.opener.invalidated), world.opener.compiles) == (1, 1)


def test_where_the_exact_form_does_not_start_and_no_other_can_be_made_that_is_told(world: World) -> None:
    world.opener.broken, world.opener.errors = {"m"}, [CompileFailed("no form fits")]
    failing(world, CompileFailed)
    assert world.opener.started == ["raw"]


def test_a_chosen_form_is_made_anew_once(world: World) -> None:
    world.opener.compiled, world.opener.broken = {"m"}, {"m"}
    failing(world, EngineError, tier="mapped")
    assert world.opener.started == ["mapped", "mapped"]
    assert world.opener.compiles == 1
    world.opener.started.clear()
    world.opener.compiled.clear()
    failing(world, EngineError, tier="mapped")
    assert world.opener.started == ["mapped"], "what was made a moment ago is not made again"


def test_another_tier_that_may_not_be_started_leaves_the_present_one(world: World) -> None:
    async def scene(serving: Serving) -> None:
        assert await world.ask(serving) == "raw"
        world.opener.off = {"m"}
        await asyncio.sleep(20.0)
        assert await world.ask(serving) == "raw"

    world.run(scene)
    assert world.opener.invalidated == []
