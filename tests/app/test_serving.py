"""Loading models for real: which graph is used, what a bad one leads to, what is closed when."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from kensho.app import GenerateOptions, Kensho, opening, serving, tiers, verifying, warmer
from kensho.app.shelf import USES_SETTING
from kensho.app.warmup import parse_uses
from kensho.base.clock import SystemClock
from kensho.base.errors import DeadlineMissed, EngineError, NotEnoughMemory, NotInstalled
from kensho.base.events import (
    CompileFinished,
    Event,
    GraphDropped,
    GraphLoaded,
    ModelWarmed,
    RequestFinished,
    TierChanged,
)
from kensho.base.structs import replace
from kensho.cli.main import main
from kensho.delivery.disk import RealDisk
from kensho.delivery.keys import keygen
from kensho.delivery.store import Store
from kensho.demo.stage import embedded_model, questions
from kensho.resilience.circuit import Mode
from kensho.runtime.cache.header import GRAPH_FILE, dump_header, read_header
from kensho.settings import load_settings

pytestmark = pytest.mark.real

QUESTION = questions("1.0.0")[0]


@dataclass
class World:
    store: Path
    events: list[Event]

    def open(self, **settings: object) -> Kensho:
        environ = settings.pop("child_env", None)
        loaded = load_settings(
            {"store": str(self.store), "standby": "on_demand", **settings},
            environ,  # type: ignore[arg-type]
        )
        return Kensho(loaded, clock=SystemClock(), listener=self.events.append)

    def heard(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    def compiled(self) -> list[Path]:
        return list((self.store / "graphs").glob(f"{'?' * 64}/header.json"))

    async def ask(self, app: Kensho, options: GenerateOptions | None = None) -> str:
        answer = app.generate("demo", QUESTION.question, options)
        return "".join([token.text async for token in answer])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model, published once: only read."""
    folder = tmp_path_factory.mktemp("published")
    keygen(folder / "keys")
    argv = ["publish", str(embedded_model() / "v1"), "--model", "demo", "--version", "1.0.0", "--quiet"]
    assert main([*argv, "--to", str(folder / "repository"), "--keys", str(folder / "keys")]) == 0
    return folder / "repository"


@pytest.fixture
def world(repository: Path, tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "store", [])
    with world.open() as app:
        app.init(f"file://{repository}", (repository / "metadata" / "1.root.json").read_bytes())
        app.pull(["demo"])
    yield world


def test_the_second_program_finds_the_graph_on_disk_and_the_second_question_in_memory(world: World) -> None:
    async def twice() -> list[str]:
        async with world.open() as app:
            sources = []
            for _ in range(2):
                answer = app.generate("demo", QUESTION.question)
                assert "".join([token.text async for token in answer]) == QUESTION.answer
                sources.append(answer.record.load_source)
            return sources

    assert asyncio.run(twice()) == ["raw", "memory"]
    assert asyncio.run(twice()) == ["disk", "memory"]
    assert world.heard(CompileFinished) == 1


SLOW = """
import kensho.runtime.compiling.stages as stages, time
real = stages.compile_model
def slow(*args, **named):
    time.sleep(2)
    return real(*args, **named)
stages.compile_model = slow
"""


@pytest.fixture
def slow_compiler(tmp_path: Path) -> dict[str, str]:
    """The environment in which a compile takes two seconds longer."""
    folder = tmp_path / "slow"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SLOW)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_a_first_answer_does_not_wait_for_the_compile_and_leaves_a_compiled_graph(
    world: World, slow_compiler: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "kensho", "--json", "--store", str(world.store), "run", "demo", QUESTION.question]
    with subprocess.Popen(command, env=slow_compiler, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        summary = next(line for line in map(json.loads, running.stdout) if line["type"] == "summary")
        assert (summary["text"], summary["load_source"], summary["tier"]) == (QUESTION.answer, "raw", "raw")
        assert world.compiled() == []
        assert running.stdout.read() == ""
    assert running.returncode == 0
    assert len(world.compiled()) == 1
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    again = json.loads(done.stdout.splitlines()[-1])
    assert (again["text"], again["load_source"], again["tier"]) == (QUESTION.answer, "disk", "mapped")


def test_the_compiled_graph_takes_over_while_a_stream_goes_on_with_the_old_engine(
    world: World, slow_compiler: dict[str, str]
) -> None:
    async def ask() -> None:
        async with world.open(allow_faults=True, child_env=slow_compiler) as app:
            assert [model.tier for model in app.status().models] == [""]
            has_changed = asyncio.Event()
            app.listen(lambda event: has_changed.set() if isinstance(event, TierChanged) else None)
            await world.ask(app)
            assert [(model.tier, model.is_upgrading) for model in app.status().models] == [("raw", True)]
            (old,) = (pid for pid in app.engine_pids("demo").values() if pid)
            app.arm_fault("demo", "primary", "slow")
            stream = app.generate("demo", QUESTION.question)
            tokens = [await anext(aiter(stream))]
            await has_changed.wait()
            assert psutil.pid_exists(old)
            assert [(model.tier, model.is_upgrading) for model in app.status().models] == [("mapped", False)]
            tokens += [token async for token in stream]
            assert "".join(token.text for token in tokens) == QUESTION.answer
            assert (stream.record.tier, stream.record.failovers) == ("raw", 0)
            answer = app.generate("demo", QUESTION.question)
            assert "".join([token.text async for token in answer]) == QUESTION.answer
            assert (answer.record.tier, answer.record.load_source) == ("mapped", "memory")
            psutil.wait_procs([psutil.Process(old)] if psutil.pid_exists(old) else [], timeout=5)
            assert not psutil.pid_exists(old)

    asyncio.run(ask())
    loaded = [(event.source, event.tier) for event in world.events if isinstance(event, GraphLoaded)]
    assert loaded == [("raw", "raw"), ("compile", "mapped")]


def test_what_was_said_of_engines_by_name_holds_for_those_of_the_next_tier(
    world: World, slow_compiler: dict[str, str]
) -> None:
    async def ask() -> None:
        async with world.open(allow_faults=True, child_env=slow_compiler) as app:
            has_changed = asyncio.Event()
            app.listen(lambda event: has_changed.set() if isinstance(event, TierChanged) else None)
            await world.ask(app)
            app.arm_fault("demo", "primary", "slow", times=1000)
            app.force_circuit("demo", "standby", Mode.FORCED_OPEN, for_s=3600.0)
            await has_changed.wait()
            (demo,) = app.loaded()
            states = {engine.engine: engine.circuit["state"] for engine in demo.engines}
            assert (demo.tier, states) == ("mapped", {"primary": "CLOSED", "standby": "FORCED_OPEN"})
            armed = app._engine("demo", "primary").armed_fault
            assert armed and armed[0] == "slow" and armed[1] > 900, "a canary may have met some"

    asyncio.run(ask())


def test_a_stream_of_requests_is_packed_and_given_back_with_the_same_words(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real engines; only the times and amounts are those of a short test."""
    monkeypatch.setattr(serving, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(tiers, "PACK_TOKENS", 10)
    monkeypatch.setattr(tiers, "IDLE_MAPPED_S", 1.0)
    has_changed: asyncio.Queue[str] = asyncio.Queue()

    async def ask() -> None:
        async with world.open() as app:
            app.listen(lambda event: has_changed.put_nowait(event.to_tier) if isinstance(event, TierChanged) else None)
            await app.compile("demo")
            for tier in ("mapped", "packed"):
                answer = app.generate("demo", QUESTION.question)
                assert "".join([token.text async for token in answer]) == QUESTION.answer
                assert answer.record.tier == tier
                async with asyncio.timeout(30):
                    assert await has_changed.get() == ("packed" if tier == "mapped" else "mapped")
            assert await world.ask(app) == QUESTION.answer

    asyncio.run(ask())


def test_leaving_by_an_exception_ends_the_compile(world: World, slow_compiler: dict[str, str]) -> None:
    async def leave() -> None:
        async with world.open(child_env=slow_compiler) as app:
            await world.ask(app)
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(leave())
    assert world.compiled() == []
    assert [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("tier", ["raw", "mapped", "mixed", "packed"])
def test_every_tier_answers_word_for_word(world: World, tier: str) -> None:
    async def ask() -> str:
        async with world.open(tier=tier) as app:
            return await world.ask(app)

    assert asyncio.run(ask()) == QUESTION.answer


def test_the_standby_of_a_packed_model_is_mapped_and_says_the_same(world: World) -> None:
    async def ask() -> list[tuple[str, str]]:
        async with world.open(tier="packed") as app:
            answers = []
            for engine in ("primary", "standby"):
                answer = app.generate("demo", QUESTION.question, GenerateOptions(engine=engine))  # type: ignore[arg-type]
                text = "".join([token.text async for token in answer])
                answers.append((answer.record.tier, text))
            return answers

    assert asyncio.run(ask()) == [("packed", QUESTION.answer), ("mapped", QUESTION.answer)]


def test_a_model_that_the_memory_bound_refuses_is_said_with_numbers(world: World) -> None:
    async def ask() -> None:
        async with world.open(model_memory_bytes=10_000_000) as app:
            with pytest.raises(NotEnoughMemory, match=r"need .* MB, 0 bytes may be taken"):
                await world.ask(app)

    asyncio.run(ask())
    assert world.heard(GraphLoaded) == 0


def test_a_cached_graph_that_no_engine_can_start_with_is_made_anew(world: World) -> None:
    """Well hashed and still unusable: as a faulty compiler, or one for another engine, would leave it (row R7)."""

    async def ask() -> str:
        async with world.open() as app:
            return await world.ask(app)

    assert asyncio.run(ask()) == QUESTION.answer
    folder = next(path for path in (world.store / "graphs").iterdir() if (path / GRAPH_FILE).exists())
    spoil_consistently(folder)
    assert asyncio.run(ask()) == QUESTION.answer
    assert world.heard(CompileFinished) == 2
    assert world.heard(GraphDropped) >= 1


def test_a_graph_that_answers_otherwise_than_when_it_was_made_is_found_at_its_first_use_after_a_boot(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are right: as after a library of the engine was damaged, or a processor grew old."""

    async def ask() -> str:
        async with world.open() as app:
            return await world.ask(app)

    def boot(name: str) -> None:
        monkeypatch.setattr(opening, "read_boot_id", lambda: name)

    boot("first")
    assert asyncio.run(ask()) == QUESTION.answer
    boot("second")
    assert asyncio.run(ask()) == QUESTION.answer  # and passes
    assert (world.heard(CompileFinished), world.heard(GraphDropped)) == (1, 0)
    (path,) = world.compiled()
    header = read_header(path.parent)
    ids = tuple((token + 1) % header.vocab_size for token in header.self_test.expected_ids)
    path.write_bytes(dump_header(replace(header, self_test=replace(header.self_test, expected_ids=ids))))
    boot("third")
    assert asyncio.run(ask()) == QUESTION.answer
    reasons = [event.reason for event in world.events if isinstance(event, GraphDropped)]
    assert reasons == [
        "no engine starts with it: the compiled graph of demo answers otherwise than when it was made",
    ]
    assert world.heard(CompileFinished) == 2


def spoil_consistently(folder: Path) -> None:
    """Replace the graph by bytes that are no graph, and make the header agree."""
    from kensho.runtime.compiling.artefact import graph_sections

    header = read_header(folder)
    junk, mixed = b"no graph at all" * 1000, b"nor this"
    sections = (*graph_sections(junk, mixed), *(s for s in header.sections if s.file != GRAPH_FILE))
    for name, data in ((GRAPH_FILE, junk + mixed), ("header.json", dump_header(replace(header, sections=sections)))):
        (folder / name).chmod(0o644)
        (folder / name).write_bytes(data)


def test_an_answer_is_reproducible_by_its_seed_and_bounded_by_max_tokens(world: World) -> None:
    async def ask() -> tuple[list[str], int]:
        async with world.open() as app:
            warm = GenerateOptions(temperature=1.5, seed=7, max_tokens=30)
            texts = [await world.ask(app, warm) for _ in range(2)]
            short = app.generate("demo", QUESTION.question, GenerateOptions(max_tokens=3))
            return texts, len([token async for token in short])

    texts, length = asyncio.run(ask())
    assert texts[0] == texts[1]
    assert length == 3


def test_two_questions_at_once_are_both_answered(world: World) -> None:
    async def both() -> list[str]:
        async with world.open() as app:
            return await asyncio.gather(*(world.ask(app) for _ in range(4)))

    assert asyncio.run(both()) == [QUESTION.answer] * 4


def test_every_load_of_a_model_is_counted(world: World) -> None:
    async def ask() -> None:
        async with world.open() as app:
            await world.ask(app)
            await world.ask(app)

    for _ in range(2):
        asyncio.run(ask())
    store = Store.open(world.store, disk=RealDisk())
    installed = store.model("demo")
    store.close()
    assert installed.uses == 2
    assert installed.used_at is not None


def test_a_named_model_answers_its_first_request_warm_and_what_was_asked_is_counted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmer, "BEGIN_S", 0.0)

    async def ask() -> tuple[str, str]:
        async with world.open(warm=["demo"], warm_up=True) as app:
            is_warm = asyncio.Event()
            app.listen(lambda event: is_warm.set() if isinstance(event, ModelWarmed) else None)
            async with asyncio.timeout(60):
                await is_warm.wait()
            answer = app.generate("demo", QUESTION.question)
            assert "".join([token.text async for token in answer]) == QUESTION.answer
            return answer.record.load_source, answer.record.tier

    assert asyncio.run(ask()) == ("memory", "mapped")
    with contextlib.closing(Store.open(world.store, disk=RealDisk())) as store:
        assert list(parse_uses(store.state.setting(USES_SETTING) or "")) == ["demo"]


def test_leaving_while_a_model_is_warmed_ends_that(
    world: World, slow_compiler: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmer, "BEGIN_S", 0.0)

    async def leave() -> None:
        async with world.open(warm=["demo"], child_env=slow_compiler):
            async with asyncio.timeout(30):
                while not psutil.Process().children():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    asyncio.run(leave())
    assert world.compiled() == []
    assert [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE] == []


def test_a_graph_that_is_damaged_under_its_engines_ends_the_stream_and_is_made_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really: the engines have the file mapped, so they compute with the damaged bytes from then on."""
    monkeypatch.setattr(serving, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(verifying, "VERIFY_EVERY_S", 0.0)

    async def scene() -> str:
        async with world.open(allow_faults=True) as app:
            await app.compile("demo")
            await world.ask(app)
            app.arm_fault("demo", "primary", "slow")
            stream = app.generate("demo", QUESTION.question)
            await anext(aiter(stream))
            (header,) = world.compiled()
            weights = header.parent / "weights.bin"
            with weights.open("r+b") as file:
                file.seek(weights.stat().st_size // 2)
                file.write(b"\x55" * 4096)
            with pytest.raises(EngineError):
                async with asyncio.timeout(60):
                    async for _ in stream:
                        pass
            return await world.ask(app)

    assert asyncio.run(scene()) == QUESTION.answer
    reasons = [event.reason for event in world.events if isinstance(event, GraphDropped)]
    assert any("weights.bin of the compiled graph is damaged" in reason for reason in reasons), reasons
    assert world.heard(CompileFinished) == 2


def test_logits_are_what_tokens_are_drawn_from_and_survive_an_engine(world: World) -> None:
    async def ask() -> None:
        async with world.open(allow_faults=True, standby="hot") as app:
            first = await anext(aiter(app.generate("demo", QUESTION.question)))
            logits = list(await app.logits("demo", QUESTION.question))
            assert logits.index(max(logits)) == first.id
            app.arm_fault("demo", "primary", "crash")
            again = list(await app.logits("demo", QUESTION.question))
            assert again.index(max(again)) == first.id
            finished = [event for event in world.events if isinstance(event, RequestFinished)]
            assert (finished[-1].outcome, finished[-1].failovers) == ("ok", 1)
            with pytest.raises(DeadlineMissed):
                await app.logits("demo", QUESTION.question, GenerateOptions(deadline_s=1e-6))
            with pytest.raises(NotInstalled):
                await app.logits("absent", QUESTION.question)

    asyncio.run(ask())
