"""Arrays that cross between program and host, in shared memory."""

import asyncio

import numpy as np
import pytest
from one_host import PROMPT, answer, engine

from kensho.base.errors import ConfigError, EngineError, WrongNumbers
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.engine.session import Session
from kensho.runtime.hosts.frames import TensorHeader

pytestmark = pytest.mark.real


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
