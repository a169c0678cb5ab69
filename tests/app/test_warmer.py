"""Models are loaded before anybody asks: once an hour, one after the other, and never against a refusal."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from kensho.app.warmer import LOOK_EVERY_S, Warmer
from kensho.app.warmup import DAY_HOURS, HOUR_S, Candidate, Room, dump_uses, hour_of, parse_uses
from kensho.base.errors import Damaged, NotEnoughMemory, StorageError
from kensho.base.events import Event, ModelNotWarmed, ModelWarmed, RequestFinished
from kensho.base.ids import GraphKey, digest_of
from kensho.delivery.store import InstalledModel
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.testing.clock import VirtualClock
from kensho.testing.loop import run_virtual

FOLDER = Path("/nowhere")


def installed(name: str) -> InstalledModel:
    return InstalledModel(name, "1", None, None, 1, digest_of(b""), 0.0, FOLDER, (), False, 0, None)


def finished(name: str) -> RequestFinished:
    return RequestFinished(
        model=name,
        version="1",
        request=1,
        engine="primary",
        tier="mapped",
        priority="high",
        outcome="ok",
        tokens=1,
        failovers=0,
        gap_ms=0.0,
        first_token_ms=1.0,
        tokens_per_second=1.0,
    )


class World:
    """The store's shelf and the loader at once."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.events: list[Event] = []
        self.uses = ""
        self.is_away = False
        self.damaged: set[str] = set()
        self.refused: set[str] = set()
        self.loaded: list[str] = []
        self.kept: list[str] = []
        self.places = 3
        self.warmed: list[str] = []

    # shelf

    def candidates(self) -> list[Candidate]:
        if self.is_away:
            raise StorageError("no store")
        return [Candidate(name, 100) for name in "abcd"]

    def ready(self, model: str) -> InstalledModel:
        if model in self.damaged:
            raise Damaged(f"{model} is damaged in 1 places")
        return installed(model)

    def read_uses(self) -> str:
        if self.is_away:
            raise StorageError("no store")
        return self.uses

    def write_uses(self, text: str) -> None:
        self.uses = text

    # loads

    def loaded_models(self) -> set[str]:
        return set(self.loaded)

    def room(self) -> Room:
        return Room(10_000, self.places - len(self.loaded))

    async def warm(self, installed: InstalledModel, *, is_kept: bool) -> LoadedGraph:
        await asyncio.sleep(7)
        if installed.model in self.refused:
            raise NotEnoughMemory("3 models are loaded")
        self.warmed.append(installed.model)
        self.loaded.append(installed.model)
        self.kept += [installed.model] * is_kept
        return LoadedGraph(installed.model, "1", GraphKey("0" * 64), FOLDER, FOLDER, "mapped", 64, "compile", 0.0)

    # the scene

    def asked_yesterday(self, **counts: int) -> None:
        self.uses = dump_uses({name: {hour_of(self.clock.wall_s()) - DAY_HOURS: n} for name, n in counts.items()})

    def play(
        self, scene: Callable[[Warmer], Awaitable[None]], *, named: tuple[str, ...] = (), is_guessing: bool = True
    ) -> None:
        async def run() -> None:
            warmer = Warmer(self, self, named=named, is_guessing=is_guessing, clock=self.clock, emit=self.events.append)
            running = asyncio.create_task(warmer.run())
            await scene(warmer)
            running.cancel()
            await asyncio.wait([running])
            assert running.cancelled()

        run_virtual(run(), clock=self.clock)


@pytest.fixture(autouse=True)
def in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Virtual time does not wait for threads."""

    async def at_once(work: Callable[..., object], *args: object) -> object:
        return work(*args)

    monkeypatch.setattr(asyncio, "to_thread", at_once)


def test_named_models_come_first_and_are_kept_and_guesses_follow() -> None:
    world = World()
    world.asked_yesterday(a=1, b=5)

    async def scene(_: Warmer) -> None:
        await asyncio.sleep(60)

    world.play(scene, named=("c",))
    assert (world.warmed, world.kept) == (["c", "b", "a"], ["c"])
    warmed = [event for event in world.events if isinstance(event, ModelWarmed)]
    assert (warmed[0].model, warmed[0].source, warmed[0].seconds) == ("c", "compile", 7.0)


def test_without_guessing_only_named_models_are_loaded() -> None:
    world = World()
    world.asked_yesterday(a=1)

    async def scene(_: Warmer) -> None:
        await asyncio.sleep(60)

    world.play(scene, named=("c",), is_guessing=False)
    assert world.warmed == ["c"]


def test_a_guess_that_was_closed_again_is_not_repeated_within_its_hour_but_the_next_day() -> None:
    world = World()
    world.asked_yesterday(a=1)

    async def scene(_: Warmer) -> None:
        await asyncio.sleep(60)
        world.loaded.clear()
        await asyncio.sleep(3 * LOOK_EVERY_S)
        assert world.warmed == ["a"]
        world.asked_yesterday(a=1)
        world.uses = dump_uses({"a": {hour_of(world.clock.wall_s()): 1}})
        await asyncio.sleep(DAY_HOURS * HOUR_S)

    world.play(scene)
    assert world.warmed == ["a", "a"]


@pytest.mark.parametrize("trouble", ["damaged", "refused"])
def test_what_cannot_be_warmed_stays_cold_and_does_not_keep_the_others_cold(trouble: str) -> None:
    world = World()
    world.asked_yesterday(a=9, b=1)
    getattr(world, trouble).add("a")

    async def scene(_: Warmer) -> None:
        await asyncio.sleep(60)

    world.play(scene)
    assert world.warmed == ["b"]
    assert [event.model for event in world.events if isinstance(event, ModelNotWarmed)] == ["a"]


def test_requests_are_counted_and_kept_when_the_application_ends() -> None:
    world = World()

    async def scene(warmer: Warmer) -> None:
        for name in "aab":
            warmer.hear(finished(name))
        await asyncio.sleep(2 * LOOK_EVERY_S)
        assert {model: sum(hours.values()) for model, hours in parse_uses(world.uses).items()} == {"a": 2, "b": 1}
        warmer.hear(finished("b"))

    world.play(scene)
    assert {model: sum(hours.values()) for model, hours in parse_uses(world.uses).items()} == {"a": 2, "b": 2}


def test_a_store_that_is_away_is_looked_for_again() -> None:
    world = World()
    world.is_away = True

    async def scene(_: Warmer) -> None:
        await asyncio.sleep(60)
        world.is_away = False
        await asyncio.sleep(LOOK_EVERY_S)

    world.play(scene, named=("c",))
    assert world.warmed == ["c"]
    assert world.events[0].name == ModelWarmed.name
