"""What every engine must do, whatever is inside: one suite, run on each implementation.

A new engine is one more entry in `KINDS`: how to make it, and on which kind of loop. The undisturbed answer is taken
from the engine itself (its first full stream), so the rules are about how it behaves, not about what it says.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import EngineCrashed, EngineError
from kensho.base.ids import digest_of
from kensho.base.inference import Engine, Sampling
from kensho.runtime.compile_job import CompileJob
from kensho.runtime.compiler import Compiler
from kensho.runtime.header import KeyFields, graph_key
from kensho.runtime.host import EngineHost
from kensho.runtime.loaded_graph import LoadedGraph
from kensho.runtime.machine import read_machine
from kensho.testing.engine import ScriptedEngine
from kensho.testing.loop import run_virtual

PROMPT = (2, 301, 302)
TOKENS = Sampling(max_tokens=20)


@dataclass(frozen=True)
class Kind:
    make: Callable[[Callable[[], Path]], Engine]
    """Gets a function that makes a folder with a compiled tiny model."""
    run: Callable[[Coroutine[object, object, None]], object]


def make_host(compiled: Callable[[], Path]) -> Engine:
    folder = compiled()
    return EngineHost(
        "host",
        LoadedGraph("m", "1", graph_key(tiny_key()), folder / "graph", folder / "model", "mapped", 256, "compile", 0.0),
        clock=SystemClock(),
        emit=lambda _: None,
        env={},
        threads=1,
        max_context=128,
        start_s=30,
        inactivity_s=20,
    )


KINDS = [
    pytest.param(Kind(lambda _: ScriptedEngine("scripted"), run_virtual), id="scripted"),
    pytest.param(Kind(make_host, asyncio.run), id="host", marks=pytest.mark.real),
]


def tiny_key() -> KeyFields:
    machine = read_machine()
    digest = digest_of(b"tiny")
    return KeyFields(
        digest, digest, digest, machine.engine_version, machine.arch, machine.system, machine.cpu_features, 256
    )


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A folder with a tiny model and its compiled graph, made when the first engine needs it."""

    @cache
    def make() -> Path:
        folder = tmp_path_factory.mktemp("engine")
        script = Path(__file__).parents[2] / "bench" / "data" / "make_gemma.py"
        subprocess.run([sys.executable, script, folder / "model", "--size", "tiny"], check=True, capture_output=True)
        (folder / "graph").mkdir()
        job = CompileJob("m", "1", str(folder / "model"), str(folder / "graph"), 256, 1, tiny_key())
        asyncio.run(Compiler(env={}, stall_s=60, emit=lambda _: None).compile(job))
        return folder

    return make


Check = Callable[[Engine], Coroutine[object, object, None]]
OnEngine = Callable[[Check], None]


@pytest.fixture
def on_engine(kind: Kind, compiled: Callable[[], Path]) -> OnEngine:
    """Runs a check with a fresh, not yet started engine, which is closed afterwards."""

    def run(check: Check) -> None:
        engine = kind.make(compiled)

        async def whole() -> None:
            try:
                await check(engine)
            finally:
                await engine.close()
            assert not engine.is_alive

        kind.run(whole())

    return run


async def answer(engine: Engine, accepted: list[int] | None = None, sampling: Sampling = TOKENS) -> list[int]:
    return [token async for token in engine.generate(PROMPT, accepted or [], sampling)]


def test_an_engine_lives_from_start_to_close_and_again(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        assert engine.name
        assert not engine.is_alive
        for _ in range(2):
            await engine.start()
            await engine.start()
            assert engine.is_alive
            assert len(await answer(engine)) == 20
            await engine.close()
            await engine.close()
            assert not engine.is_alive

    on_engine(check)


def test_the_same_request_has_the_same_answer(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        first = await answer(engine)
        await answer(engine, [5, 6, 7])
        assert await answer(engine) == first

    on_engine(check)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_stream_goes_on_from_any_accepted_prefix(temperature: float, on_engine: OnEngine) -> None:
    sampling = Sampling(max_tokens=20, temperature=temperature, seed=3)

    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine, [], sampling)
        for cut in (1, 10, 19, 20):
            assert whole[:cut] + await answer(engine, whole[:cut], sampling) == whole

    on_engine(check)


def test_a_stop_id_ends_the_stream_and_is_not_handed_out(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        stop = whole[7]
        assert await answer(engine, [], Sampling(max_tokens=20, stop_ids=(stop,))) == whole[: whole.index(stop)]

    on_engine(check)


def test_after_a_closed_stream_the_engine_is_free_at_once(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        stream = engine.generate(PROMPT, [], TOKENS)
        assert await anext(stream) == whole[0]
        await stream.aclose()
        assert await answer(engine) == whole

    on_engine(check)


def test_a_second_stream_waits_for_the_first(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine)
        first = engine.generate(PROMPT, [], TOKENS)
        assert await anext(first) == whole[0]
        second = asyncio.create_task(answer(engine))
        assert [token async for token in first] == whole[1:]
        assert await second == whole

    on_engine(check)


def test_a_killed_engine_ends_its_stream_with_engine_crashed_and_starts_again(on_engine: OnEngine) -> None:
    long = Sampling(max_tokens=120)

    async def check(engine: Engine) -> None:
        await engine.start()
        whole = await answer(engine, [], long)
        stream = engine.generate(PROMPT, [], long)
        got = [await anext(stream)]
        await engine.kill()
        await engine.kill()
        assert not engine.is_alive
        with pytest.raises(EngineCrashed):
            async for token in stream:
                got.append(token)  # what had arrived before the kill may still be handed out
        assert got == whole[: len(got)]
        await engine.start()
        assert got + await answer(engine, got, long) == whole

    on_engine(check)


def test_an_engine_that_does_not_run_answers_with_engine_crashed(on_engine: OnEngine) -> None:
    async def check(engine: Engine) -> None:
        with pytest.raises(EngineError) as caught:
            await answer(engine)
        assert isinstance(caught.value, EngineCrashed)

    on_engine(check)
