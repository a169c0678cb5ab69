"""Loaded models over hours of virtual time: when a tier changes, who is closed, what is refused. No process."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest

from kensho.app import verifying
from kensho.app.opening import ServedModel
from kensho.app.serving import LOOK_EVERY_S, RETRY_S, Serving
from kensho.app.tiers import HOST_BYTES, IDLE_CLOSE_S, IDLE_MAPPED_S, PACK_TOKENS, RESERVE_BYTES, ModelSizes
from kensho.app.warmup import STAY_S
from kensho.base.errors import CompileFailed, Damaged, EngineError, NotEnoughMemory, WrongNumbers
from kensho.base.events import Emit, Event, ModelClosed, RequestFinished, TierChanged, TierKept
from kensho.base.ids import GraphKey, digest_of
from kensho.base.structs import replace
from kensho.delivery.store import InstalledModel
from kensho.resilience.scheduler import Scheduler
from kensho.runtime.cache.loaded_graph import LoadedGraph, Origin
from kensho.runtime.hosts.frames import Tier
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.text.codec import TextCodec
from kensho.settings import Settings
from kensho.testing.clock import VirtualClock
from kensho.testing.loop import run_virtual

MIB = 1 << 20
GRAPH_BYTES = 280 * MIB
COMPILE_S = 5.0
STEP_S = 0.1
START_S = 0.05


@dataclass
class Opener:
    """Graphs and engines that cost time and memory, and nothing else."""

    emit: Emit
    compiled: set[str] = field(default_factory=set)
    errors: list[EngineError] = field(default_factory=list)
    running: list[ServedModel] = field(default_factory=list)
    released: int = 0
    compiles: int = 0
    has_closed: bool = False
    has_finished: bool = False
    is_held: bool = False
    held_s: float = 0.0
    lanes: dict[str, asyncio.Lock] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    unfit: set[str] = field(default_factory=set)
    """Models whose graph from the disk no engine can start with, or answers wrongly with."""
    invalidated: list[str] = field(default_factory=list)
    verified: list[str] = field(default_factory=list)

    async def find(self, installed: InstalledModel, tier: Tier) -> LoadedGraph | None:
        return self._graph(installed, tier, "disk") if installed.model in self.compiled else None

    async def make(
        self, installed: InstalledModel, tier: Tier, *, is_background: bool = False, is_idle: bool = False
    ) -> LoadedGraph:
        if tier == "raw":
            await asyncio.sleep(0.1)
            return self._graph(installed, tier, "raw")
        async with self.lanes.setdefault(installed.model, asyncio.Lock()):
            return await self._compile(installed, tier, is_background=is_background, is_idle=is_idle)

    async def _compile(
        self, installed: InstalledModel, tier: Tier, *, is_background: bool, is_idle: bool
    ) -> LoadedGraph:
        if installed.model not in self.compiled:
            if is_idle:
                for _ in range(round(COMPILE_S / STEP_S)):
                    while self.is_held:
                        self.held_s += STEP_S
                        await asyncio.sleep(STEP_S)
                    await asyncio.sleep(STEP_S)
            else:
                await asyncio.sleep(COMPILE_S if is_background else COMPILE_S / 2)
            self.compiles += 1
            if self.errors:
                raise self.errors.pop(0)
            self.compiled.add(installed.model)
        return self._graph(installed, tier, "compile")

    def hold_idle(self, is_held: bool) -> None:
        self.is_held = is_held

    async def sizes(self, graph: LoadedGraph) -> ModelSizes:
        return ModelSizes(0 if graph.tier == "raw" else GRAPH_BYTES, 10 * MIB, 1)

    async def start(
        self, installed: InstalledModel, graph: LoadedGraph, sizes: ModelSizes, codec: TextCodec | None
    ) -> ServedModel:
        served = ServedModel(
            graph,
            codec or cast("TextCodec", installed.model),
            cast("Scheduler", None),
            cast("tuple[EngineHost]", ()),
            sizes,
        )
        await asyncio.sleep(START_S)
        if graph.source == "disk" and installed.model in self.unfit:
            raise WrongNumbers("it answers otherwise than when it was made")
        self.running.append(served)
        return served

    async def end(self, served: ServedModel) -> None:
        await asyncio.sleep(0.01)
        self.running.remove(served)

    async def release(self, graph: LoadedGraph) -> None:
        self.released += 1

    async def verify(self, graph: LoadedGraph) -> None:
        await asyncio.sleep(2)
        self.verified.append(graph.model)
        if graph.model in self.damaged:
            raise Damaged("weights.bin of the compiled graph is damaged")

    async def invalidate(self, graph: LoadedGraph, reason: str) -> None:
        self.compiled.discard(graph.model)
        self.damaged.discard(graph.model)
        self.invalidated.append(reason)

    async def finish(self) -> None:
        await asyncio.sleep(5)
        self.has_finished = True

    async def close(self) -> None:
        self.has_closed = True

    def _graph(self, installed: InstalledModel, tier: Tier, source: Origin) -> LoadedGraph:
        key = GraphKey("0" * 64)
        return LoadedGraph(installed.model, "1", key, installed.folder, installed.folder, tier, 64, source, 0.0)

    @property
    def tiers(self) -> list[str]:
        return [served.graph.tier for served in self.running]


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = VirtualClock()
        self.events: list[Event] = []
        self.machine_bytes = 8 << 30
        self.settings = Settings(store=folder)
        self.opener = Opener(self.events.append)

    def run(self, scene: Callable[[Serving], Awaitable[None]], **settings: object) -> None:
        """Play the scene on a Serving; afterwards nothing may be left."""

        def make_opener(emit: Emit) -> Opener:
            self.opener.emit = emit
            return self.opener

        async def play() -> None:
            serving = Serving(
                replace(self.settings, **settings),  # type: ignore[arg-type]
                make_opener=make_opener,
                read_memory=self.free_bytes,
                clock=self.clock,
                emit=self.events.append,
            )
            try:
                await scene(serving)
            finally:
                await serving.close()
                await serving.close()
            assert self.opener.running == []
            assert self.opener.has_closed
            assert asyncio.all_tasks() == {asyncio.current_task()}

        run_virtual(play(), clock=self.clock)

    def free_bytes(self) -> int:
        used = sum(served.sizes.needed_bytes(served.graph.tier) for served in self.opener.running)
        return self.machine_bytes - used

    def model(self, name: str) -> InstalledModel:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return InstalledModel(name, "1", None, None, 1, digest_of(b""), 0.0, folder, (), False, 0, None)

    async def ask(self, serving: Serving, name: str = "m", tokens: int = 10, seconds: float = 1.0) -> str:
        """One answer; returns the tier that gave it."""
        async with serving.use(self.model(name)) as served:
            await asyncio.sleep(seconds)
            self.opener.emit(
                RequestFinished(
                    model=name,
                    version="1",
                    engine="primary",
                    tier=served.graph.tier,
                    priority="high",
                    outcome="ok",
                    tokens=tokens,
                    failovers=0,
                    gap_ms=0.0,
                    first_token_ms=1.0,
                    tokens_per_second=1.0,
                )
            )
            return served.graph.tier

    def changes(self) -> list[tuple[str, str]]:
        return [(event.from_tier, event.to_tier) for event in self.events if isinstance(event, TierChanged)]

    def closed(self) -> list[str]:
        return [event.model for event in self.events if isinstance(event, ModelClosed)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


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
