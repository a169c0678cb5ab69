"""Real hosts whose graph is damaged while they serve: both compute nonsense, in good health by all other signs."""

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from kensho.base.events import CanaryFinished, Event
from kensho.base.inference import Sampling
from kensho.resilience.checkups import CheckupSettings
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.scheduler import SchedulerSettings
from kensho.runtime.cache.header import WEIGHTS_FILE
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.testing.real_engines import PROMPT_IDS, Stage, compile_demo, two_engines

pytestmark = pytest.mark.real

SETTINGS = SchedulerSettings(
    breaker=BreakerSettings(ramp_s=0.0), checkups=CheckupSettings(every_s=0.5, idle_s=0.2, most_s=600.0)
)
SOON_S = 20.0


def damage(path: Path) -> None:
    """Under the eyes of who has it mapped, as a disk or a memory does."""
    with path.open("r+b") as file:
        file.seek(0, 2)
        size = file.tell()
        for offset in range(size // 8, size - 4096, size // 64):
            file.seek(offset)
            file.write(b"\x55" * 4096)


async def ask(stage: Stage, engine: str | None = None) -> list[int]:
    answer = stage.scheduler.submit(PROMPT_IDS, Sampling(max_tokens=8), engine=engine)
    async with aclosing(answer):
        return [token async for token in answer]


async def until(events: list[Event], engine: str, outcome: str) -> CanaryFinished:
    def heard() -> list[CanaryFinished]:
        told = [event for event in events if isinstance(event, CanaryFinished) and event.engine == engine]
        return [event for event in told if event.outcome.startswith(outcome)]

    async with asyncio.timeout(SOON_S):
        while not heard():  # noqa: ASYNC110  # as an operator would see it
            await asyncio.sleep(0.05)
    return heard()[0]


def test_engines_over_a_graph_that_rots_are_taken_out(tmp_path: Path) -> None:
    async def main(graph: LoadedGraph) -> None:
        async with two_engines(graph, emit=events.append, settings=SETTINGS) as stage:
            whole = await ask(stage)
            for engine in ("standby", "primary"):
                assert (await until(events, engine, "passed")).failure == ""
            damage(graph.graph_folder / WEIGHTS_FILE)
            wrong = [await ask(stage, engine) for engine in ("primary", "standby")]
            assert whole not in wrong, "it is damaged, and nobody has noticed"
            modes = {name: seen.mode for name, seen in stage.scheduler.circuits().items()}
            assert set(modes.values()) == {Mode.CLOSED}
            for engine in ("primary", "standby"):
                assert (await until(events, engine, "failed")).failure == "mismatch"
            assert Mode.CLOSED not in {seen.mode for seen in stage.scheduler.circuits().values()}

    events: list[Event] = []
    asyncio.run(main(compile_demo(tmp_path)))
