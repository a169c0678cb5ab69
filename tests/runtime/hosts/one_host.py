"""One real engine host with the tiny model, its usual question, and a look at what it leaves behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from kensho.base.clock import SystemClock
from kensho.base.events import Event
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_source import HostSource

PROMPT = (2, 300, 301, 302)
TOKENS = Sampling(max_tokens=24)


@asynccontextmanager
async def engine(
    graph: LoadedGraph,
    events: list[Event] | None = None,
    *,
    inactivity_s: float = 20,
    env: dict[str, str] | None = None,
    hosts: HostSource | None = None,
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
        hosts=hosts,
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
