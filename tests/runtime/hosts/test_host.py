"""An engine in a real process, with a real (small, random) model: its starts, its answers, its ends."""

import asyncio
import shutil
import time
from pathlib import Path

import psutil
import pytest
from one_host import PROMPT, TOKENS, answer, engine

from kensho.base.errors import ConfigError, EngineCrashed, EngineError
from kensho.base.events import EngineStarted, Event, GraphLoaded
from kensho.base.inference import Sampling
from kensho.base.structs import replace
from kensho.runtime.cache.loaded_graph import LoadedGraph

pytestmark = pytest.mark.real


def test_a_host_answers_as_the_session_does_in_process(graph: LoadedGraph, undisturbed: list[int]) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events) as host:
            assert not host.is_alive
            await host.start()
            await host.start()
            assert host.is_alive
            assert host.pid == psutil.Process().children()[0].pid
            assert await answer(host) == undisturbed
            assert await answer(host) == undisturbed
        assert not host.is_alive
        assert host.pid is None

    asyncio.run(run())
    assert [type(event) for event in events] == [EngineStarted, GraphLoaded]


def test_leaving_a_stream_stops_the_host_within_a_step(graph: LoadedGraph, undisturbed: list[int]) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            host.arm_fault("slow", 1)  # 0.3 s a step
            stream = host.generate(PROMPT, (), TOKENS)
            assert await anext(stream) == undisturbed[0]
            began = time.monotonic()
            await stream.aclose()
            assert time.monotonic() - began < 0.7
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_cancelling_the_task_of_a_stream_stops_the_host_too(graph: LoadedGraph, undisturbed: list[int]) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            host.arm_fault("slow", 1)
            task = asyncio.create_task(answer(host))
            await asyncio.sleep(0.4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_late_answers_to_a_request_cancelled_twice_are_not_taken_for_the_next_ones(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            host.arm_fault("slow", 1)
            task = asyncio.create_task(answer(host))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_second_stream_waits_for_the_first(graph: LoadedGraph, undisturbed: list[int]) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            assert await asyncio.gather(*[answer(host) for _ in range(3)]) == [undisturbed] * 3

    asyncio.run(run())


def test_a_prompt_that_does_not_fit_is_the_callers_error_and_the_host_lives(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            for prompt in ((), (1,) * 129, (4096,)):
                with pytest.raises(ConfigError):
                    [token async for token in host.generate(prompt, (), TOKENS)]
            full = [token async for token in host.generate((2,) * 120, (), TOKENS)]
            assert len(full) == 9  # eight more positions, and the token after the last one
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_graph_that_cannot_be_loaded_is_an_error_and_leaves_no_process(graph: LoadedGraph, tmp_path: Path) -> None:
    async def run() -> None:
        async with engine(replace(graph, graph_folder=tmp_path / "nowhere")) as host:
            with pytest.raises(EngineError, match="cannot be loaded"):
                await host.start()
            assert not host.is_alive
            assert psutil.Process().children() == []

    asyncio.run(run())


def test_a_child_that_cannot_even_begin_says_why(graph: LoadedGraph, tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is broken here')")

    async def run() -> None:
        async with engine(graph, env={"PYTHONPATH": str(tmp_path)}) as host:
            with pytest.raises(EngineCrashed, match=r"exit code 1 \(ImportError: numpy is broken here\)"):
                await host.start()

    asyncio.run(run())


@pytest.mark.parametrize("after_s", [0.0, 0.01, 0.05])
def test_cancelling_a_start_leaves_no_process(after_s: float, graph: LoadedGraph) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            task = asyncio.create_task(host.start())
            await asyncio.sleep(after_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert psutil.Process().children() == []
            await host.start()
            await answer(host)

    asyncio.run(run())


def test_twenty_starts_and_ends_leave_no_process_descriptor_or_thread(graph: LoadedGraph) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()  # what is made once per program is there now
            await host.close()
            before = (psutil.Process().num_fds(), psutil.Process().num_threads())
            for turn in range(20):
                await host.start()
                await anext(host.generate(PROMPT, (), TOKENS))
                await (host.kill() if turn % 2 else host.close())
            assert psutil.Process().children() == []
            assert (psutil.Process().num_fds(), psutil.Process().num_threads()) == before

    asyncio.run(run())


def test_killing_and_closing_twice_or_before_a_start_is_nothing(graph: LoadedGraph) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.kill()
            await host.close()
            await host.start()
            stream = asyncio.create_task(answer(host))
            await asyncio.sleep(0)
            await asyncio.gather(host.kill(), host.kill(), host.close())
            with pytest.raises(EngineCrashed):
                await stream

    asyncio.run(run())


def test_a_sampled_stream_goes_on_elsewhere_as_if_undisturbed(graph: LoadedGraph) -> None:
    sampling = Sampling(max_tokens=24, temperature=0.8, seed=11)

    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            whole = await answer(host, (), sampling)
            assert len(set(whole)) > 4
            for cut in (1, 12, 23):
                assert whole[:cut] + await answer(host, tuple(whole[:cut]), sampling) == whole

    asyncio.run(run())


def test_a_damaged_or_missing_weights_file_is_an_engine_error(graph: LoadedGraph, tmp_path: Path) -> None:
    shutil.copytree(graph.graph_folder, tmp_path / "graph")
    (tmp_path / "graph" / "weights.bin").write_bytes(b"short")

    async def run() -> None:
        async with engine(replace(graph, graph_folder=tmp_path / "graph")) as host:
            with pytest.raises(EngineError):
                await host.start()

    asyncio.run(run())
