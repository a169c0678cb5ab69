"""What an engine host costs: its start from each source, a token and 4 MB across, a death noticed, a failure mended.

    python bench/hosts.py [--rounds 7] [--work FOLDER]

The model has the real shape of Gemma 3 270M and random weights (bench/data/make_gemma.py: 75 s, compiled in 10 s, both
kept in --work). Wall times in ms unless said, medians; engines take turns within a round. One thread each, so that two
engines have a core each. There is no peer to compare with: other runtimes have no such boundary to measure.
"""

import argparse
import asyncio
import os
import sys
import time
from contextlib import aclosing
from pathlib import Path
from statistics import median

from harness import ROOT, print_bar, print_machine
from host_boundary import boundary_figures, busy_cost
from host_engines import CONTEXT, ENV, PROMPT, Forked, compiled, cpu_of, engine, show
from host_failures import failure_figures
from kensho.base.clock import SystemClock
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.generation import Generator
from kensho.runtime.engine.in_process import InProcessEngine
from kensho.runtime.engine.session import Session
from kensho.runtime.hosts import frames
from kensho.runtime.hosts.host_source import HostSource, NewHost, SpawnedHosts
from kensho.runtime.system.machine import ENGINE_ENVIRONMENT

TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "runtime", help="the model, kept")
    args = parser.parse_args()
    graph = compiled(args.work)
    print_machine("onnxruntime", "numpy")
    rounds = args.rounds
    asyncio.run(start_figures(rounds))
    asyncio.run(boundary_figures(rounds))
    asyncio.run(busy_cost(rounds))
    asyncio.run(token_cost(graph, rounds))
    asyncio.run(failure_figures(graph, rounds))
    print_bar_of_load()


def print_bar_of_load() -> None:
    print(f"load average at the end: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")


async def start_figures(rounds: int) -> None:
    print("\nfrom nothing to a host that answers")
    began = time.perf_counter()
    forked = Forked()
    await answers(await forked.start(env=ENV, allow_faults=False))
    launch_ms = 1e3 * (time.perf_counter() - began)
    sources: dict[str, HostSource] = {"spawn": SpawnedHosts(), "fork-server": forked}
    times: dict[str, list[float]] = {name: [] for name in sources}
    memory: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            began = time.perf_counter()
            made = await source.start(env=ENV, allow_faults=False)
            own_mb = await answers(made)
            times[name].append(1e3 * (time.perf_counter() - began))
            memory[name].append(own_mb)
    print(f"      launch of a fork-server and its first host: {launch_ms:.1f} ms")
    for name in sources:
        show(f"{name}, until it answers", times[name])
        show(f"{name}, proportional memory", memory[name], "MB")
    print_bar("fork-server: a host that answers", median(times["fork-server"]), 20, "ms")
    forked.server.close()


async def answers(made: NewHost) -> float:
    """Asks it once, ends it; returns its proportional memory in MB."""
    loop = asyncio.get_running_loop()
    made.sock.setblocking(False)
    await loop.sock_sendall(made.sock, frames.encode(frames.Ping()))
    await loop.sock_recv(made.sock, 99)
    rollup = Path(f"/proc/{made.child.pid}/smaps_rollup").read_text()  # noqa: ASYNC240
    own_mb = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))) / 1024
    made.discard(5)
    return own_mb


async def token_cost(graph: LoadedGraph, rounds: int) -> None:
    print(f"\na token of 270M, packed, {TOKENS} tokens a round")
    host = engine(graph, SpawnedHosts(), tier="packed")
    thread = InProcessEngine(
        "here",
        graph,
        clock=SystemClock(),
        emit=lambda _: None,
        threads=1,
        max_context=CONTEXT,
        start_s=60,
        inactivity_s=30,
    )
    session = Session.load(graph.graph_folder, graph.model_folder, tier="packed", max_context=CONTEXT, threads=1)
    generator = Generator(session, Faults())
    await host.start()
    await thread.start()
    sampling = Sampling(max_tokens=TOKENS)
    found: dict[str, list[float]] = {"in this thread": [], "in a thread": [], "in a host": []}
    cpu: dict[str, list[float]] = {name: [] for name in found}
    ids: dict[str, list[int]] = {}
    for number in range(rounds + 1):
        for name, values in found.items():
            stamps: list[float] = []
            ids[name] = []
            cpu_ms = cpu_of(os.getpid(), host.pid)
            if name == "in this thread":
                request = frames.Generate(1, PROMPT, (), sampling)

                def note(token: int, stamps: list[float] = stamps, name: str = name) -> None:
                    stamps.append(time.perf_counter())
                    ids[name].append(token)

                generator.run(request, is_cancelled=lambda: False, on_token=note)
            else:
                engine_ = host if name == "in a host" else thread
                async with aclosing(engine_.generate(PROMPT, (), sampling)) as stream:
                    async for token in stream:
                        stamps.append(time.perf_counter())
                        ids[name].append(token)
            if number:
                values.append(1e3 * (stamps[-1] - stamps[0]) / (len(stamps) - 1))
                cpu[name].append((cpu_of(os.getpid(), host.pid) - cpu_ms) / len(stamps))
    assert len({tuple(tokens) for tokens in ids.values()}) == 1
    for name, values in found.items():
        show(f"{name}, a token", values)
    for name, values in cpu.items():
        show(f"{name}, CPU of both processes a token", values)
    session.close()
    await host.close()
    await thread.close()


if __name__ == "__main__":
    if ENGINE_ENVIRONMENT.items() <= os.environ.items():
        main()
    else:  # the engine in this process under the same conditions as those in hosts: huge pages among them
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENGINE_ENVIRONMENT})
