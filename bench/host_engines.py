"""The engines of `bench/hosts.py`, and what it reads of processes: medians, CPU time, memory."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from kensho.base.clock import SystemClock
from kensho.base.structs import replace
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.fork_server import ForkServer
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.hosts.host_source import HostSource, NewHost
from runtime_compile import prepare

HERE = Path(__file__).resolve()
PROMPT = tuple(range(5, 21))
CONTEXT = 2048
ENV = {"PYTHONPATH": str(HERE.parent), "PATH": os.environ["PATH"]}


def compiled(work: Path) -> LoadedGraph:
    model, folder = prepare(work), work / "bench_hosts"
    if not (folder / "ready").exists():
        folder.mkdir(exist_ok=True)
        subprocess.run(
            [sys.executable, HERE.parent / "runtime_compile.py", "--part", "compile", model, folder], check=True
        )
        (folder / "ready").touch()
    for file in folder.iterdir():
        file.read_bytes()  # into the page cache
    return LoadedGraph("bench", "1", "k", folder, model, "packed", 4096, "disk", 0.0)  # type: ignore[arg-type]


def engine(
    graph: LoadedGraph, hosts: HostSource, *, tier: str, inactivity_s: float = 30.0, name: str = "e"
) -> EngineHost:
    return EngineHost(
        name,
        replace(graph, tier=tier),
        clock=SystemClock(),
        emit=lambda _: None,
        env=ENV,
        threads=1,
        max_context=CONTEXT,
        start_s=60,
        inactivity_s=inactivity_s,
        allow_faults=True,
        hosts=hosts,
    )


def show(what: str, values: Sequence[float], unit: str = "ms") -> float:
    middle = median(values)
    print(f"      {what}: {middle:.3f} {unit} ({min(values):.3f} - {max(values):.3f}, n={len(values)})")
    return middle


class Forked:
    """Hosts of one fork-server."""

    def __init__(self) -> None:
        self.server = ForkServer.launch(ENV)

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        return await self.server.start_host(env=env, allow_faults=allow_faults)


def cpu_of(*pids: int | None) -> float:
    """CPU time of these processes together, ms, from the scheduler's nanoseconds."""
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


def own_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon"))) / 1024
