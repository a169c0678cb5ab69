"""Loading models for real: which graph is used, what a bad one leads to, what is closed when."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from kensho.app import GenerateOptions, Kensho
from kensho.base.clock import SystemClock
from kensho.base.errors import UsageError
from kensho.base.events import CompileFinished, Event, GraphDropped
from kensho.cli.main import main
from kensho.delivery.keys import keygen
from kensho.demo.stage import embedded_model, questions
from kensho.runtime.header import GRAPH_FILE, dump_header, read_header
from kensho.settings import load_settings

pytestmark = pytest.mark.real

QUESTION = questions("1.0.0")[0]


@dataclass
class World:
    store: Path
    events: list[Event]

    def open(self, **settings: object) -> Kensho:
        loaded = load_settings({"store": str(self.store), "standby": "on_demand", **settings})
        return Kensho(loaded, clock=SystemClock(), listener=self.events.append)

    def heard(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)

    async def ask(self, app: Kensho, options: GenerateOptions | None = None) -> str:
        answer = app.generate("demo", QUESTION.question, options)
        return "".join([token.text async for token in answer])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    keygen(tmp_path / "keys")
    repository = tmp_path / "repository"
    argv = ["publish", str(embedded_model() / "v1"), "--model", "demo", "--version", "1.0.0", "--quiet"]
    assert main([*argv, "--to", str(repository), "--keys", str(tmp_path / "keys")]) == 0
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

    assert asyncio.run(twice()) == ["compile", "memory"]
    assert asyncio.run(twice()) == ["disk", "memory"]
    assert world.heard(CompileFinished) == 1


@pytest.mark.parametrize("tier", ["raw", "mapped", "packed"])
def test_every_tier_answers_word_for_word(world: World, tier: str) -> None:
    async def ask() -> str:
        async with world.open(tier=tier) as app:
            return await world.ask(app)

    assert asyncio.run(ask()) == QUESTION.answer


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


def spoil_consistently(folder: Path) -> None:
    """Replace the graph by bytes that are no graph, and make the header agree."""
    from dataclasses import replace

    from kensho.runtime.artefact import graph_sections

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


def test_options_that_make_no_sense_are_refused() -> None:
    for bad in ({"max_tokens": 0}, {"temperature": -1.0}, {"temperature": 9.0}, {"seed": -1}, {"deadline_s": 0.0}):
        with pytest.raises(UsageError):
            GenerateOptions(**bad)


def test_two_questions_at_once_are_both_answered(world: World) -> None:
    async def both() -> list[str]:
        async with world.open() as app:
            return await asyncio.gather(*(world.ask(app) for _ in range(4)))

    assert asyncio.run(both()) == [QUESTION.answer] * 4
