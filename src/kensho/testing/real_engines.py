"""A scheduler over two real engine hosts with the small demonstration model, to rehearse what scripts cannot show.

graph = compile_demo(folder)                       # a second or two, once
async with two_engines(graph, emit=events.append) as stage:
    async for token in stage.scheduler.submit(PROMPT_IDS, Sampling(max_tokens=200)): ...
    os.kill(stage.primary.pid, signal.SIGKILL)
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kensho.base.backoff import Rng
from kensho.base.clock import SystemClock
from kensho.base.events import Emit
from kensho.base.ids import digest_of
from kensho.base.structs import Struct
from kensho.demo.stage import embedded_model
from kensho.resilience.circuit import BreakerSettings
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.runtime.cache.header import KeyFields, graph_key, read_header
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_supply import HostSupply
from kensho.runtime.system.machine import read_machine

PROMPT_IDS = (2, 301, 302, 17, 44)
MAX_CONTEXT = 1024
REHEARSAL = BreakerSettings(restart_open_s=0.1, ramp_s=0.0, free_restarts=1_000_000, min_calls=1_000_000)
"""For failures by the dozen: an engine that is killed again and again is started at once each time, and gets its full
share of requests as soon as it is proven."""


def compile_demo(folder: Path) -> LoadedGraph:
    """The demonstration model, compiled into the empty `folder` by a real compile child."""
    machine, digest = read_machine(), digest_of(b"demo")
    key = KeyFields(
        digest, digest, digest, machine.engine_version, machine.arch, machine.system, machine.cpu_features, MAX_CONTEXT
    )
    model_folder = embedded_model() / "v1"
    job = CompileJob("demo", "1", str(model_folder), str(folder), MAX_CONTEXT, 1, key)
    asyncio.run(Compiler(env={}, stall_s=120, emit=lambda _: None).compile(job))
    return LoadedGraph("demo", "1", graph_key(key), folder, model_folder, "mapped", MAX_CONTEXT, "compile", 0.0)


class Stage(Struct):
    scheduler: Scheduler
    primary: EngineHost
    standby: EngineHost


@asynccontextmanager
async def two_engines(
    graph: LoadedGraph, *, emit: Emit, settings: SchedulerSettings | None = None, rng: Rng = lambda: 0.5
) -> AsyncIterator[Stage]:
    """The engines are loaded and idle when the block begins (a standby on demand is not); no process is left when it
    ends. Without `settings` the circuits are those of `REHEARSAL`.
    """
    settings = settings or SchedulerSettings(breaker=REHEARSAL)
    hosts = 2 if settings.standby == "hot" else 1
    clock, supply = SystemClock(), HostSupply(env={}, emit=emit)
    primary, standby = (
        EngineHost(
            name,
            graph,
            clock=clock,
            emit=emit,
            env={},
            threads=1,
            max_context=MAX_CONTEXT,
            start_s=60,
            inactivity_s=20,
            hosts=supply,
        )
        for name in ("primary", "standby")
    )
    vector = read_header(graph.graph_folder).self_test
    logit, tolerance = vector.expected_micro[0] / 1e6, vector.tolerance_micro / 1e6
    scheduler = Scheduler(
        primary,
        standby,
        model=graph.model,
        version=graph.version,
        tier_of=lambda _: graph.tier,
        canary=Canary(vector.prompt_ids, vector.expected_ids, expected_logit=logit, tolerance=tolerance),
        settings=settings,
        clock=clock,
        rng=rng,
        emit=emit,
    )
    try:
        async with scheduler:
            async with asyncio.timeout(60):
                while scheduler.snapshot().slots < hosts:  # noqa: ASYNC110  # as users see it
                    await asyncio.sleep(0.01)
            yield Stage(scheduler, primary, standby)
    finally:
        supply.close()
