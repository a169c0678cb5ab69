"""From a delivered folder to the first answer: the raw tier, the compile, and loading each tier of its result.

    python bench/runtime_compile.py [--rounds 5] [--work FOLDER]

The model has the real shape of Gemma 3 270M and random weights (bench/data/make_gemma.py: 75 s, kept in --work).
Every measurement is a process of its own, the tiers take turns within a round, medians are shown, the page cache is
warm. One thread. CPU is that of the process; own memory is RssAnon: what was mapped from files is not in it. "Resident"
is the second load of a process, so the engine's library is there already. The KV cache is for 2048 tokens.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
TIERS = ("raw", "mapped", "mixed", "packed")
CONTEXT, TOKENS = 2048, 24
SAMPLE_S = 0.002
Numbers = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "runtime", help="the model, kept")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part[0]](*map(Path, args.part[1:]))))
        return
    model = prepare(args.work)
    print_machine()
    compiled, raw = args.work / "graph", args.work / "raw"
    compiles, raws, hosts = [], [], []
    loads: dict[str, list[Numbers]] = {tier: [] for tier in TIERS}
    for _ in range(args.rounds):
        compiles.append(child("compile", model, fresh(compiled)))
        raws.append(child("raw", model, fresh(raw)))
        hosts.append(child("hosts", model, fresh(args.work / "hosts")))
        for tier in TIERS:
            loads[tier].append(child("load", model, raw if tier == "raw" else compiled, Path(tier)))
    print_compile(compiles)
    print_loads(loads)
    print_bars(compiles, raws, hosts, loads)


def prepare(work: Path) -> Path:
    model = work / "270m"
    if not (work / "ready").exists():
        work.mkdir(parents=True, exist_ok=True)
        make = [sys.executable, ROOT / "bench" / "data" / "make_gemma.py", model, "--size", "270m"]
        subprocess.run(make, check=True)
        (work / "ready").touch()
    (model / "model.safetensors").read_bytes()  # into the page cache
    return model


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# --- what runs in a process of its own ---


def part_compile(model: Path, out: Path) -> Numbers:
    from kensho.base.clock import SystemClock
    from kensho.base.ids import digest_of
    from kensho.runtime.cache.header import KeyFields
    from kensho.runtime.compiling.stages import compile_model
    from kensho.runtime.system.machine import read_machine

    machine = read_machine()
    key = KeyFields(
        weights_digest=digest_of(b"weights"),
        config_digest=digest_of(b"config"),
        tokenizer_digest=digest_of(b"tokenizer"),
        engine_version=machine.engine_version,
        arch=machine.arch,
        system=machine.system,
        cpu_features=machine.cpu_features,
        max_positions=4096,
    )
    marks: Numbers = {}

    def progress(stage: str, done: int, total: int, unit: str) -> None:
        del unit
        if done in {0, total}:
            marks[f"{stage} {'begins' if done == 0 else 'ends'}"] = time.perf_counter()

    began_s = time.perf_counter()
    header = compile_model(model, out, key=key, model="bench", version="1", clock=SystemClock(), progress=progress)
    wall_s = time.perf_counter() - began_s
    stages = {name[:-5]: end - marks[f"{name[:-5]} begins"] for name, end in marks.items() if name.endswith(" ends")}
    stages = {f"{name.strip()} s": seconds for name, seconds in stages.items()}
    speed = {f"decode {speed.form} us": speed.decode_us for speed in header.speeds}
    return {"wall_s": wall_s, "artefact_mb": header.size_bytes / 1e6, **stages, **speed}


def part_raw(model: Path, out: Path) -> Numbers:
    from kensho.runtime.engine.session import Session
    from kensho.runtime.graph.raw_graph import build_raw

    began_s = time.perf_counter()
    build_raw(model, out)
    built_s = time.perf_counter()
    with closing(Session.load(out, model, tier="raw", max_context=CONTEXT, threads=1)) as session:
        session.append(range(5, 21))
        return {"build_s": built_s - began_s, "wall_s": time.perf_counter() - began_s}


def part_hosts(model: Path, out: Path) -> Numbers:
    """As an application does it: the raw graph built by a child, the answer given by an engine host."""
    return {name: asyncio.run(first_answer(model, out, is_early=name == "early_s")) for name in ("early_s", "later_s")}


async def first_answer(model: Path, out: Path, *, is_early: bool) -> float:
    """`is_early`: the host's process starts while the graph is built, not after it."""
    from secrets import token_hex

    from kensho.base.clock import SystemClock
    from kensho.base.ids import digest_of
    from kensho.base.inference import Sampling
    from kensho.runtime.cache.graph_cache import GraphCache
    from kensho.runtime.cache.loader import ModelLoader
    from kensho.runtime.compiling.compiler import Compiler
    from kensho.runtime.hosts.early_host import EarlyHosts
    from kensho.runtime.hosts.host import EngineHost
    from kensho.runtime.hosts.host_source import SpawnedHosts
    from kensho.runtime.system.machine import read_machine

    def token() -> str:
        return token_hex(4)

    clock, env = SystemClock(), dict(os.environ)
    loader = ModelLoader(
        cache=GraphCache(out, limit_bytes=1 << 33, boot="", clock=clock, token=token, emit=ignore),
        compiler=Compiler(env=env, stall_s=60, emit=ignore),
        scratch=out,
        token=token,
        machine=read_machine(),
        clock=clock,
        emit=ignore,
        max_context=CONTEXT,
        threads=1,
    )
    digests = {name: digest_of(name.encode()) for name in ("config.json", "tokenizer.json", "model.safetensors")}
    hosts = EarlyHosts(SpawnedHosts())
    began_s = time.perf_counter()
    if is_early:
        hosts.prepare(env=env, allow_faults=False)
    graph = await loader.load("bench", "1", model, digests, tier="raw")
    host = EngineHost(
        "primary",
        graph,
        clock=clock,
        emit=ignore,
        env=env,
        threads=1,
        max_context=CONTEXT,
        start_s=60,
        inactivity_s=30,
        hosts=hosts,
    )
    await host.start()
    try:
        async for _ in host.generate(tuple(range(5, 21)), (), Sampling(max_tokens=1)):
            return time.perf_counter() - began_s
        raise AssertionError("no token")
    finally:
        await host.close()
        loader.close()


def ignore(event: object) -> None:
    del event


def part_load(model: Path, graph: Path, tier_name: Path) -> Numbers:
    from kensho.runtime.engine.session import Session, Tier

    (tier,) = (known for known in TIERS if known == str(tier_name))
    typed: Tier = tier  # type: ignore[assignment]

    def load() -> "Session":
        return Session.load(graph, model, tier=typed, max_context=CONTEXT, threads=1)

    before_mb = own_memory_mb("self")
    first = Stopwatch()
    with closing(load()) as session:
        found = {"first load": first.cpu_ms(), "memory": own_memory_mb("self") - before_mb}
        session.append(range(5, 21))
        found["all"] = own_memory_mb("self")
        session.append(range(30, 46))
        session.rewind(0)
        long = Stopwatch()
        session.append(range(5, 133))
        found["p128"] = long.cpu_ms()
        decode = Stopwatch()
        for token in range(TOKENS):
            session.append([100 + token])
        found["token"] = decode.cpu_ms() / TOKENS
        found["token wall"] = decode.wall_ms() / TOKENS
    for length in (16, 128):
        again = Stopwatch()
        with closing(load()) as session:
            found["load"], found["load wall"] = again.cpu_ms(), again.wall_ms()
            session.append(range(5, 5 + length))
            found[f"load+p{length}"] = again.cpu_ms()
            found[f"load+p{length} wall"] = again.wall_ms()
    return found


PARTS = {"compile": part_compile, "raw": part_raw, "hosts": part_hosts, "load": part_load}


class Stopwatch:
    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def cpu_ms(self) -> float:
        return (time.process_time() - self._cpu_s) * 1e3

    def wall_ms(self) -> float:
        return (time.perf_counter() - self._wall_s) * 1e3


def own_memory_mb(process: str) -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0


# --- the parent ---


def child(part: str, *words: Path) -> Numbers:
    """What the part says, with the wall time, CPU and peak own memory of its whole process."""
    command = [sys.executable, str(Path(__file__).resolve()), "--part", part, *map(str, words)]
    began_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        peak_mb, is_over = 0.0, threading.Event()

        def sample() -> None:
            nonlocal peak_mb
            while not is_over.wait(SAMPLE_S):
                try:
                    peak_mb = max(peak_mb, own_memory_mb(str(process.pid)))
                except OSError:
                    return

        sampler = threading.Thread(target=sample)
        if part == "compile":  # in the others the sampler would disturb
            sampler.start()
        assert process.stdout
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        is_over.set()
        if part == "compile":
            sampler.join()
    if process.returncode:
        sys.exit(f"{part} ended with {process.returncode}")
    whole = {"process_s": time.perf_counter() - began_s, "process_cpu_s": usage.ru_utime + usage.ru_stime}
    return {**json.loads(output), **whole, "peak_mb": peak_mb}


def middle(runs: Sequence[Numbers], name: str) -> float:
    return median(run[name] for run in runs)


def print_machine() -> None:
    import numpy
    import onnxruntime

    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    cpus = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in cpus.splitlines() if line.startswith("model name")), "?")
    print(f"machine: {model}, {os.cpu_count()} cores, Linux {platform.release()}, load {load}")
    versions = {"onnxruntime": onnxruntime.__version__, "numpy": numpy.__version__}
    print(f"versions: python {platform.python_version()}, {versions}")


def print_compile(runs: Sequence[Numbers]) -> None:
    print(f"\ncompile, n={len(runs)}: median (min - max)")
    for name in runs[0]:
        values = [run[name] for run in runs if name in run]
        print(f"  {name:16} {median(values):9.3f}  ({min(values):.3f} - {max(values):.3f})")


def print_loads(loads: dict[str, list[Numbers]]) -> None:
    columns = (
        "first load", "load", "load wall", "memory", "all", "load+p16", "load+p16 wall", "load+p128",
        "load+p128 wall", "p128", "token", "token wall",
    )  # fmt: skip
    print("\ntiers: medians. CPU ms where wall is not said; own memory in MB, of the load and of all after 16 tokens")
    print(f"  {'':8}" + "".join(f"{name:>15}" for name in columns))
    for tier, runs in loads.items():
        print(f"  {tier:8}" + "".join(f"{middle(runs, name):15.1f}" for name in columns))


def print_bars(
    compiles: Sequence[Numbers], raws: Sequence[Numbers], hosts: Sequence[Numbers], loads: dict[str, list[Numbers]]
) -> None:
    mapped = loads["mapped"]
    bars = (
        ("raw: folder to first answer, resident, s", middle(raws, "wall_s"), 0.5),
        ("raw: the same with its process, s", middle(raws, "process_s"), None),
        ("raw: folder to first answer, compile child and engine host, s", middle(hosts, "early_s"), 0.5),
        ("raw: the same, the host started after the build, s", middle(hosts, "later_s"), None),
        ("compile, wall with its process, s", middle(compiles, "process_s"), 5.0),
        ("compile, peak own memory, MB", middle(compiles, "peak_mb"), 200.0),
        ("artefact, MB", middle(compiles, "artefact_mb"), 290.0),
        ("mapped: load in a resident process, CPU ms", middle(mapped, "load"), 40.0),
        ("mapped: own memory of a load, MB", middle(mapped, "memory"), 40.0),
        ("mapped: load + first token, prompt of 16, resident, wall ms", middle(mapped, "load+p16 wall"), 100.0),
        ("mapped: the same, CPU ms", middle(mapped, "load+p16"), None),
        ("mapped: load + first token, prompt of 128, resident, wall ms", middle(mapped, "load+p128 wall"), 150.0),
        ("mapped: the same, CPU ms", middle(mapped, "load+p128"), None),
        ("mapped: a second process, own memory after p16, MB", middle(mapped, "all"), 60.0),
    )
    print()
    for name, value, bar in bars:
        verdict = "    " if bar is None else "PASS" if value <= bar else "MISS"
        print(f"{verdict}  {name}: {value:.4g}" + (f" (bar: <= {bar:g})" if bar is not None else ""))


if __name__ == "__main__":
    main()
