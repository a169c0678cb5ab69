"""An engine in a real process, with a real (small, random) model, and everything that can happen to it."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import ConfigError, EngineCrashed, EngineError, EngineHung, WrongNumbers
from kensho.base.events import EngineLost, EngineStarted, Event, GraphLoaded
from kensho.base.inference import Sampling
from kensho.base.structs import replace
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.engine.faults import SLOW_START_S
from kensho.runtime.engine.session import Session
from kensho.runtime.hosts.frames import TensorHeader
from kensho.runtime.hosts.host import EngineHost

pytestmark = pytest.mark.real

PROMPT = (2, 300, 301, 302)
TOKENS = Sampling(max_tokens=24)


@asynccontextmanager
async def engine(
    graph: LoadedGraph,
    events: list[Event] | None = None,
    *,
    inactivity_s: float = 20,
    env: dict[str, str] | None = None,
) -> AsyncIterator[EngineHost]:
    host = EngineHost(
        "primary",
        graph,
        clock=SystemClock(),
        emit=(events if events is not None else []).append,
        env=env or {},
        threads=1,
        max_context=128,
        start_s=30,
        inactivity_s=inactivity_s,
        allow_faults=True,
    )
    tasks = asyncio.all_tasks()
    try:
        yield host
    finally:
        await host.close()
        assert psutil.Process().children() == []
        assert asyncio.all_tasks() == tasks


async def answer(host: EngineHost, accepted: tuple[int, ...] = (), sampling: Sampling = TOKENS) -> list[int]:
    return [token async for token in host.generate(PROMPT, accepted, sampling)]


@pytest.fixture(scope="module")
def undisturbed(graph: LoadedGraph) -> list[int]:
    """The greedy answer of the same session in this process."""
    session = Session.load(graph.graph_folder, graph.model_folder, tier="mapped", threads=1)
    ids, pending = [], list(PROMPT)
    while len(ids) < TOKENS.max_tokens:
        pending = [int(np.argmax(session.append(pending)))]
        ids += pending
    session.close()
    return ids


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


@pytest.mark.parametrize("after", [0, 1, 4])
def test_a_killed_host_is_noticed_and_another_goes_on_with_the_accepted_ids(
    after: int, graph: LoadedGraph, undisturbed: list[int]
) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events) as host:
            await host.start()
            got = []
            stream = host.generate(PROMPT, (), TOKENS)
            host.arm_fault("slow", 1)
            killed_at = 0.0
            with pytest.raises(EngineCrashed) as caught:
                if after == 0:
                    asyncio.get_running_loop().call_later(0.05, os.kill, host.pid, signal.SIGKILL)
                async for token in stream:
                    got.append(token)
                    if len(got) == after:
                        killed_at = time.monotonic()
                        os.kill(host.pid or 0, signal.SIGKILL)
            assert after == 0 or time.monotonic() - killed_at < 1
            assert (caught.value.facts["signal"], caught.value.facts["exit_code"]) == ("SIGKILL", None)
            assert not host.is_alive
            await host.start()
            assert len(got) == after
            assert got + await answer(host, tuple(got)) == undisturbed

    asyncio.run(run())
    assert [event.reason for event in events if isinstance(event, EngineLost)] == ["SIGKILL"]


def test_a_host_that_hangs_is_killed_within_the_budget(graph: LoadedGraph, undisturbed: list[int]) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events, inactivity_s=0.4) as host:
            await host.start()
            host.arm_fault("hang", 1)
            began = time.monotonic()
            with pytest.raises(EngineHung):
                await answer(host)
            assert 0.4 < time.monotonic() - began < 2
            assert not host.is_alive
            await host.start()
            assert await answer(host) == undisturbed
            assert [child.pid for child in psutil.Process().children()] == [host.pid]

    asyncio.run(run())
    assert "no progress" in next(event.reason for event in events if isinstance(event, EngineLost))


def test_a_frozen_process_is_killed_too(graph: LoadedGraph) -> None:
    async def run() -> None:
        async with engine(graph, inactivity_s=0.4) as host:
            await host.start()
            os.kill(host.pid or 0, signal.SIGSTOP)
            with pytest.raises(EngineHung):
                await answer(host)

    asyncio.run(run())


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


def test_a_cancelled_host_that_does_not_stop_is_killed(graph: LoadedGraph) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events, inactivity_s=0.4) as host:
            await host.start()
            host.arm_fault("hang", 1)
            task = asyncio.create_task(answer(host))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not host.is_alive

    asyncio.run(run())
    assert "did not stop" in next(event.reason for event in events if isinstance(event, EngineLost))


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


@pytest.mark.parametrize(
    ("kind", "error", "survives"),
    [
        ("fail", EngineError, True),
        ("nan", WrongNumbers, True),
        ("oom", EngineError, True),
        ("crash", EngineCrashed, False),
    ],
)
def test_an_armed_fault_is_met_as_often_as_asked_across_restarts(
    kind: str, error: type[EngineError], survives: bool, graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            host.arm_fault(kind, 2)  # type: ignore[arg-type]
            for _ in range(2):
                await host.start()
                with pytest.raises(error):
                    await answer(host)
                assert host.is_alive == survives
            await host.start()
            assert await answer(host) == undisturbed
            host.arm_fault(kind, 1)  # type: ignore[arg-type]
            host.clear_faults()
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_host_armed_with_wrong_numbers_answers_with_other_plausible_tokens_once(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            right = await host.logits(PROMPT)
            host.arm_fault("wrong", 2)
            assert np.isfinite(wrong := await host.logits(PROMPT)).all()
            assert np.abs(wrong - right).max() > 0.1
            answered = await answer(host)
            assert len(answered) == len(undisturbed)
            assert answered != undisturbed
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_host_armed_to_be_cut_off_ends_in_the_middle_of_a_message(graph: LoadedGraph, undisturbed: list[int]) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            for work in (answer, lambda host: host.logits(PROMPT)):
                await host.start()
                host.arm_fault("truncate", 1)
                with pytest.raises(EngineCrashed, match="in the middle of a message"):
                    await work(host)
                assert not host.is_alive
            await host.start()
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_slow_start_takes_longer_or_is_given_up(
    graph: LoadedGraph, monkeypatch: pytest.MonkeyPatch, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            host.arm_fault("slow_start", 2)
            assert await answer(host) == undisturbed  # it is for starts, not for requests
            await host.close()
            monkeypatch.setattr(host, "_start_s", 0.7)
            with pytest.raises(EngineHung, match="did not load"):
                await host.start()
            monkeypatch.setattr(host, "_start_s", 30)
            began = time.monotonic()
            await host.start()
            assert time.monotonic() - began > SLOW_START_S
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_logits_are_those_of_the_session_and_leave_streams_as_they_were(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    session = Session.load(graph.graph_folder, graph.model_folder, tier="mapped", threads=1)

    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            for ids in (PROMPT, PROMPT * 20, (7,)):
                assert await answer(host) == undisturbed
                session.rewind(0)
                logits = await host.logits(ids)
                assert np.array_equal(logits, session.append(ids))
                assert np.array_equal(logits, await host.logits(ids))
            for bad in ((), (4096,), (-1,), (1,) * 129):
                with pytest.raises(ConfigError):
                    await host.logits(bad)
            host.arm_fault("nan", 1)
            with pytest.raises(WrongNumbers):
                await host.logits(PROMPT)
            assert await answer(host) == undisturbed

    asyncio.run(run())
    session.close()


def test_arrays_cross_both_ways_and_the_engine_waits_while_they_are_read(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            for size in (1, 1 << 20, 3, 2 << 20):
                sent = {"a": np.arange(size, dtype=np.int64), "b": np.ones((2, 2), np.float16)}
                async with host.exchange("echo", sent, 20) as arrays:
                    other = asyncio.create_task(answer(host))
                    await asyncio.sleep(0.01)
                    for name, array in sent.items():
                        assert np.array_equal(arrays[name], array)
                assert await other == undisturbed
            for size in (9 << 20, 5 << 20):  # the second has room for the question and none for the answer
                with pytest.raises(ConfigError, match="at most"):
                    async with host.exchange("echo", {"a": np.zeros(size)}, 20):
                        pass
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_segment_smaller_than_claimed_is_an_error_in_the_host_which_lives(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            assert host._host
            segment = host._host.tensors
            for header in (TensorHeader("ids", "int64", (1 << 20,), 0), TensorHeader("ids", "int64", (1,), 8)):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(segment, "put", lambda arrays, header=header: (header,))
                    with pytest.raises(EngineError, match=r"are claimed|out of bounds"):
                        await host.logits(PROMPT)
            assert await answer(host) == undisturbed
            await host.logits(PROMPT)

    asyncio.run(run())


def test_leaving_an_exchange_early_leaves_the_host_idle(graph: LoadedGraph, undisturbed: list[int]) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            host.arm_fault("slow", 1)
            task = asyncio.create_task(host.logits(PROMPT))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_kill_of_ours_is_told_before_the_process_is_reaped(graph: LoadedGraph) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            host.arm_fault("hang", 1)
            stream = asyncio.create_task(answer(host))
            await asyncio.sleep(0.2)
            process = psutil.Process(host.pid)
            process.suspend()
            killing = asyncio.create_task(host.kill())
            with pytest.raises(EngineCrashed, match="SIGKILL, by us") as caught:
                await stream
            assert caught.value.facts["signal"] == "SIGKILL"
            await killing
            assert not process.is_running()

    asyncio.run(run())


def test_faults_are_refused_where_they_are_not_allowed(graph: LoadedGraph) -> None:
    host = EngineHost(
        "e", graph, clock=SystemClock(), emit=print, env={}, threads=1, max_context=9, start_s=1, inactivity_s=1
    )
    with pytest.raises(ConfigError, match="does not allow faults"):
        host.arm_fault("crash", 1)


def test_a_host_that_dies_while_idle_is_noticed_without_a_request(graph: LoadedGraph) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with engine(graph, events) as host:
            await host.start()
            os.kill(host.pid or 0, signal.SIGSEGV)
            while not any(isinstance(event, EngineLost) for event in events):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not host.is_alive
            with pytest.raises(EngineCrashed, match="not running"):
                await answer(host)

    asyncio.run(asyncio.wait_for(run(), 10))
    assert [event.reason for event in events if isinstance(event, EngineLost)] == ["SIGSEGV"]


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


def test_the_host_dies_with_a_killed_parent_even_in_the_middle_of_a_hang(graph: LoadedGraph, tmp_path: Path) -> None:
    script = f"""
import asyncio, sys
from pathlib import Path
from kensho.base.clock import SystemClock
from kensho.base.inference import Sampling
from kensho.runtime.engine.faults import SLOW_START_S
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.cache.loaded_graph import LoadedGraph
graph = LoadedGraph("m", "1", "k", Path({str(graph.graph_folder)!r}), Path("."), "mapped", 256, "disk", 0.0)
async def main():
    host = EngineHost("e", graph, clock=SystemClock(), emit=lambda _: None, env={{}}, threads=1, max_context=64,
                      start_s=30, inactivity_s=60, allow_faults=True)
    await host.start()
    host.arm_fault("hang", 1)
    print(host.pid, flush=True)
    async for _ in host.generate([1], (), Sampling()): pass
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone


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


def test_a_file_cut_short_under_a_running_host_costs_a_request_not_the_program(
    graph: LoadedGraph, tmp_path: Path
) -> None:
    # The map's pages are gone: the kernel sends SIGBUS to whoever reads them.
    shutil.copytree(graph.graph_folder, tmp_path / "graph")

    async def run() -> None:
        async with engine(replace(graph, graph_folder=tmp_path / "graph")) as host:
            await host.start()
            os.truncate(tmp_path / "graph" / "weights.bin", 0)
            with pytest.raises(EngineCrashed, match="SIGBUS"):
                await answer(host)
            assert not host.is_alive

    asyncio.run(run())
