"""The engines that the suite runs on. A new engine is one more entry in KINDS: how to make it, and on which loop."""

import asyncio
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import cache
from pathlib import Path

import psutil
import pytest

from kensho.base.clock import SystemClock
from kensho.base.ids import digest_of
from kensho.base.inference import Engine
from kensho.base.structs import Struct
from kensho.runtime.cache.header import KeyFields, graph_key
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.engine.in_process import InProcessEngine
from kensho.runtime.hosts.fork_server import ForkServer
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_source import HostSource, NewHost, SpawnedHosts
from kensho.runtime.hosts.host_supply import HostSupply
from kensho.runtime.hosts.prefork import prefork
from kensho.runtime.system import process
from kensho.runtime.system.machine import read_machine
from kensho.testing.engine import ScriptedEngine
from kensho.testing.loop import run_virtual

Compiled = Callable[[], Path]
Check = Callable[[Engine], Awaitable[None]]
OnEngine = Callable[[Check], None]


class Made(Struct):
    """An engine that has not been started, and what else must be closed after it."""

    engine: Engine
    close: Callable[[], object] = lambda: None


class Kind(Struct):
    make: Callable[[Compiled], Made]
    """Gets a function that makes a folder with a compiled tiny model."""
    run: Callable[[Coroutine[object, object, None]], object] = asyncio.run


def tiny_graph(compiled: Compiled) -> LoadedGraph:
    folder = compiled()
    key = graph_key(tiny_key())
    return LoadedGraph("m", "1", key, folder / "graph", folder / "model", "mapped", 256, "compile", 0.0)


def on_host(compiled: Compiled, hosts: HostSource) -> EngineHost:
    return EngineHost(
        "host",
        tiny_graph(compiled),
        clock=SystemClock(),
        emit=lambda _: None,
        env={},
        threads=1,
        max_context=128,
        start_s=30,
        inactivity_s=20,
        hosts=hosts,
    )


class ForkedHosts:
    """Every host, the first one too, is forked from a fork-server."""

    def __init__(self) -> None:
        self._server: ForkServer | None = None

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        self._server = self._server or ForkServer.launch(env)
        return await self._server.start_host(env=env, allow_faults=allow_faults)

    def close(self) -> None:
        if self._server:
            self._server.close()


def make_forked(compiled: Compiled) -> Made:
    hosts = ForkedHosts()
    return Made(on_host(compiled, hosts), hosts.close)


def make_preforked(compiled: Compiled) -> Made:
    graph = compiled  # before the fork: the child needs none of it
    graph()
    supply = HostSupply(env={}, emit=lambda _: None, first=prefork({}))
    return Made(on_host(compiled, supply), supply.close)


def make_in_process(compiled: Compiled) -> Made:
    graph = tiny_graph(compiled)
    engine = InProcessEngine(
        "here",
        graph,
        clock=SystemClock(),
        emit=lambda _: None,
        threads=1,
        max_context=128,
        start_s=30,
        inactivity_s=20,
    )
    return Made(engine)


def make_documented(compiled: Compiled) -> Made:
    """The example of docs/engines.md, as it stands there."""
    del compiled
    page = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?class (\w+Engine).*?)```", page, re.DOTALL)
    assert example
    names: dict[str, type] = {}
    exec(compile(example[1], "docs/engines.md", "exec"), names)
    return Made(names[example[2]]())


REAL = pytest.mark.real
KINDS = [
    pytest.param(Kind(lambda _: Made(ScriptedEngine("scripted")), run_virtual), id="scripted"),
    pytest.param(Kind(make_documented), id="documented"),
    pytest.param(Kind(lambda compiled: Made(on_host(compiled, SpawnedHosts()))), id="spawned", marks=REAL),
    pytest.param(Kind(make_forked), id="forked", marks=REAL),
    pytest.param(Kind(make_preforked), id="preforked", marks=REAL),
    pytest.param(Kind(make_in_process), id="in process", marks=REAL),
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
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
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


def things() -> dict[str, set[object]]:
    """Everything that an engine could leave on this machine."""
    me = psutil.Process()
    maps = Path("/proc/self/maps").read_text()
    return {
        "processes": set(me.children(recursive=True)),
        "descriptors": set(range(me.num_fds())),
        "threads": set(range(me.num_threads())),
        "segments": set(Path("/dev/shm").iterdir()),
        "maps": {line for line in maps.splitlines() if "memfd:kensho" in line},
    }


def left_behind(before: dict[str, set[object]]) -> dict[str, set[object]]:
    """What is there now and was not. (What others made before and ended meanwhile is no concern of an engine's.)"""
    now = things()
    return {kind: now[kind] - before[kind] for kind in now if now[kind] - before[kind]}


@pytest.fixture
def on_engine(kind: Kind, compiled: Compiled) -> OnEngine:
    """Runs a check with a fresh, not yet started engine, which is closed afterwards and must have left nothing."""

    def run(check: Check) -> None:
        process._spawner.get().submit(int).result()  # a thread that is made once per program
        importlib.import_module("numpy")  # and numpy's own
        made_before = kind.make(compiled)
        made_before.close()
        asyncio.run(asyncio.sleep(0))
        before = things()
        made = kind.make(compiled)

        async def whole() -> None:
            tasks = asyncio.all_tasks()
            try:
                await check(made.engine)
            finally:
                await made.engine.close()
            assert not made.engine.is_alive
            assert asyncio.all_tasks() == tasks

        kind.run(whole())
        made.close()
        for _ in range(100):  # a joined thread is still listed for some microseconds
            if not left_behind(before):
                break
            time.sleep(0.01)
        assert not left_behind(before)

    return run
