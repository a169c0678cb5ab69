"""One answer: which deadline bounds what, and which model goes on when the engines of the first are out."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from kensho.app.answer_stream import AnswerStream
from kensho.app.answers import GenerateOptions
from kensho.app.asking import Asking
from kensho.app.routing import Router
from kensho.base.errors import DeadlineMissed, EnginesOff, NotInstalled
from kensho.base.inference import Sampling
from kensho.testing.clock import VirtualClock
from kensho.testing.loop import run_virtual


class Scheduler:
    """Answers with the word's letters, one in 10 ms; `off_after` so many it has no engine left."""

    def __init__(self, word: str, off_after: int = 99) -> None:
        self.word = word
        self.off_after = off_after
        self.deadlines: list[float | None] = []

    def submit(self, prompt_ids: list[int], sampling: Sampling, *, deadline_s: float | None, **_: object) -> Any:
        self.deadlines.append(deadline_s)
        return Answer(self)


class Answer:
    def __init__(self, scheduler: Scheduler) -> None:
        self.record = SimpleNamespace(engine="primary", tokens_per_second=1.0, failovers=0, gap_ms=0.0)
        self.ids = self.letters(scheduler)

    async def letters(self, scheduler: Scheduler) -> AsyncIterator[int]:
        for number, letter in enumerate(scheduler.word):
            if number >= scheduler.off_after:
                raise EnginesOff("both are out")
            await asyncio.sleep(0.01)
            yield ord(letter)

    def __aiter__(self) -> AsyncIterator[int]:
        return self.ids

    async def aclose(self) -> None:
        await self.ids.aclose()  # type: ignore[attr-defined]


class Models:
    """Also what loads them, which takes `load_s`."""

    def __init__(self, instead: dict[str, str] | None = None, load_s: float = 0.0, **there: Scheduler) -> None:
        self.there = there
        self.instead = instead or {}
        self.load_s = load_s
        self.users = 0
        self.clock = VirtualClock()

    @asynccontextmanager
    async def use(self, installed: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(self.load_s)
        graph = SimpleNamespace(model=installed.model, version="1", max_positions=100, source="disk")
        codec = SimpleNamespace(
            prompt_ids=lambda text, is_raw: [1],
            stop_ids=(),
            detokenizer=lambda: SimpleNamespace(push=chr, finish=lambda: ""),
        )
        self.users += 1
        scheduler = self.there[installed.model]
        try:
            yield SimpleNamespace(graph=graph, codec=codec, scheduler=scheduler, tier_of=lambda _: "mapped")
        finally:
            self.users -= 1

    def answering(self, model: str) -> None:
        return None

    async def ready(self, model: str) -> Any:
        if model not in self.there:
            raise NotInstalled(f"{model} is not installed")
        return SimpleNamespace(model=model, version="1")

    async def fallback_of(self, model: str) -> str | None:
        return self.instead.get(model)

    def ask(self, **options: Any) -> AnswerStream:
        router = Router(
            "big", options.get("engine"), tasks={}, ready=self.ready, fallback_of=self.fallback_of,
            engines_of=lambda _: (),
        )  # fmt: skip
        serve: Any = lambda: self  # noqa: E731
        asking = Asking(router, "prompt", GenerateOptions(**options), serve=serve, clock=self.clock)
        return AnswerStream(asking, max_context=100, clock=self.clock)

    def play(self, scene: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await scene()
            assert self.users == 0

        run_virtual(main(), clock=self.clock)


async def text_of(answer: AnswerStream) -> str:
    async with aclosing(answer):
        return "".join([token.text async for token in answer])


def test_a_deadline_that_was_given_bounds_the_load_too() -> None:
    models = Models(load_s=5.0, big=Scheduler("word"))

    async def scene() -> None:
        began_s = models.clock.monotonic_s()
        with pytest.raises(DeadlineMissed, match="'big' is being loaded") as caught:
            await text_of(models.ask(deadline_s=0.05))
        assert models.clock.monotonic_s() - began_s == pytest.approx(0.05)
        assert caught.value.facts["retry_after_s"] == 1.0
        answer = models.ask(deadline_s=6.0)
        assert await text_of(answer) == "word"
        assert models.there["big"].deadlines == [pytest.approx(began_s + 6.05)]
        assert await text_of(models.ask()) == "word"
        assert models.there["big"].deadlines[1] is None

    models.play(scene)


def test_where_no_engine_is_left_before_the_first_token_the_fallback_answers() -> None:
    models = Models({"big": "small"}, big=Scheduler("long", off_after=0), small=Scheduler("short"))

    async def scene() -> None:
        answer = models.ask()
        assert await text_of(answer) == "short"
        record = answer.record
        assert (record.model, record.is_fallback_model) == ("small", True)
        assert record.reason == "fallback of 'big'; big: both are out"

    models.play(scene)


def test_an_answer_that_has_begun_is_never_gone_on_with_by_another_model() -> None:
    models = Models({"big": "small"}, big=Scheduler("long", off_after=2), small=Scheduler("short"))

    async def scene() -> None:
        answer = models.ask()
        with pytest.raises(EnginesOff):
            await text_of(answer)
        assert answer.so_far.text == "lo"

    models.play(scene)


@pytest.mark.parametrize("options", [{}, {"engine": "primary"}], ids=["no fallback", "engine asked for"])
def test_where_nothing_else_may_answer_that_is_told(options: Any) -> None:
    models = Models({"big": "small"} if options else {}, big=Scheduler("long", off_after=0), small=Scheduler("short"))

    async def scene() -> None:
        with pytest.raises(EnginesOff, match="both are out"):
            await text_of(models.ask(**options))

    models.play(scene)
