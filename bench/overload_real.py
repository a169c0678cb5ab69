"""Overload for real: the scheduler, real engine hosts, the demonstration model, the load from a process of its own.

Two slots are the product's defaults: a hot standby beside the primary. One slot: the standby would be loaded on demand.
Each round measures, one after another on the shared machine: the CRITICAL requests of the trace one at a time
("unloaded"); the capacity, closed loop; the overload; the capacity again; and the floor, which is the CRITICAL requests
of the same trace at their time and nobody else. Deadlines are ten times the mean service of a slot for CRITICAL.

What is not the scheduler's is measured beside it: who used the processors, how much slower a slot is when all of them
work, how late the generator sent, and how long requests and answers were on their way. A request is in time by its
client's clock; both processes read the same one.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from harness import print_bar
from kensho.base.clock import SystemClock
from kensho.base.events import Event
from kensho.base.structs import Struct, replace
from kensho.resilience.admission import Priority
from kensho.resilience.scheduler import SchedulerSettings
from kensho.testing.load import SERVICE_S
from kensho.testing.play import Desk, Figures, Played, p99
from kensho.testing.real_engines import PROMPT_IDS, REHEARSAL, Stage, compile_demo, two_engines

GENERATOR = Path(__file__).with_name("overload_generator.py")
AT_ONCE = 6
"""More clients than slots, so that no slot waits for a client."""
CLOSED_S, ALONE_S = 4.0, 6.0
CRITICAL = Priority.CRITICAL
PROMPTS = range(100, 300)
"""The second id of a prompt: what a host remembers of one request is of no use to the next."""
FIELDS = tuple(Played.__annotations__)


class Ran(Struct):
    """One run of the generator."""

    played: list[Played]
    figures: Figures
    for_s: float
    cpu_s: dict[str, float]
    slips_s: list[float]
    on_the_way_s: list[float]

    @property
    def tokens_per_s(self) -> float:
        return self.figures.good_tokens / self.for_s

    @property
    def tokens_per_cpu_s(self) -> float:
        return self.figures.good_tokens / self.cpu_s["hosts"]


class Round(Struct, kw_only=True):
    goodput: float
    goodput_by_cpu: float
    """The same for each second that the hosts had a core: others who use the machine do not count in it."""
    figures: Figures
    late_at_server: float
    p99_s: float
    alone_s: float
    floor: Figures
    floor_s: float
    """p99 of CRITICAL: of the overload, one at a time, and alone in the same order."""


class Bench:
    def __init__(self, stage: Stage, path: Path, slots: int) -> None:
        self.stage, self.path, self.slots = stage, path, slots
        self.way_s: list[float] = []
        self.tokens = 150

    async def generate(self, kind: str, for_s: float, **how: Any) -> Ran:
        self.way_s.clear()
        hosts = [psutil.Process(host.pid) for host in (self.stage.primary, self.stage.standby) if host.is_alive]
        cpu_s = {"scheduler": -time.process_time(), "hosts": -sum(map(_cpu_s, hosts))}
        told = json.dumps({"slots": self.slots, "tokens": self.tokens, "for_s": for_s, **how})
        child = await asyncio.create_subprocess_exec(
            sys.executable, GENERATOR, str(self.path), kind, told, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await child.communicate()
        if child.returncode:
            sys.exit("the load generator failed")
        got = json.loads(out)
        cpu_s["scheduler"] += time.process_time()
        cpu_s["hosts"] += sum(map(_cpu_s, hosts))
        cpu_s["generator"] = got["cpu_s"]
        played = [Played(**row | {"priority": Priority(row["priority"])}) for row in got["rows"]]
        figures = Figures(played, got["began_s"], got["began_s"] + for_s)
        return Ran(played, figures, for_s, cpu_s, got["slips_s"], list(self.way_s))

    async def capacity(self, seed: int) -> Ran:
        return await self.generate("closed", CLOSED_S, at_once=AT_ONCE, seed=seed)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def real(rounds: int, seconds: float, slots: int, loads: Sequence[float]) -> None:
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "graph").mkdir()
        graph = await asyncio.to_thread(compile_demo, folder / "graph")
        settings = SchedulerSettings(breaker=REHEARSAL, standby="hot" if slots == 2 else "on_demand")
        async with two_engines(graph, emit=events.append, settings=settings) as stage:
            bench = Bench(stage, folder / "socket", slots)
            async with served(bench):
                await _rounds(bench, rounds, seconds, loads)
    opened = [event for event in events if type(event).__name__ == "CircuitOpened"]
    print_bar("circuits opened by overload", len(opened), 0, "")


@asynccontextmanager
async def served(bench: Bench) -> AsyncIterator[None]:
    """Requests as JSON lines; each is a whole answer with a deadline."""
    tasks: set[asyncio.Task[None]] = set()
    clock = SystemClock()
    desk = Desk(bench.stage.scheduler, clock)

    async def answer(asked: list[Any], writer: asyncio.StreamWriter) -> None:
        number, priority, tokens, came_s, deadline_s = asked
        bench.way_s.append(clock.monotonic_s() - came_s)
        prompt_ids = (PROMPT_IDS[0], PROMPTS[number % len(PROMPTS)], *PROMPT_IDS[2:])
        one = await desk.ask(prompt_ids, tokens, Priority(priority), came_s=came_s, deadline_s=deadline_s)
        row = {name: getattr(one, name) for name in FIELDS}
        writer.write(json.dumps([number, row]).encode() + b"\n")

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            task = asyncio.create_task(answer(json.loads(line), writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_unix_server(listen, bench.path)
    try:
        yield
    finally:
        server.close()
        await asyncio.gather(*tasks)


async def busy_share(bench: Bench, until: asyncio.Event) -> float:
    """Share of the time in which each engine had a request, looked at a hundred times a second."""
    looks = busy = 0
    while not until.is_set():
        looks += 1
        busy += bench.stage.scheduler.snapshot().running
        await asyncio.sleep(0.01)
    return busy / max(1, looks) / bench.slots


async def _rounds(bench: Bench, rounds: int, seconds: float, loads: Sequence[float]) -> None:
    await bench.capacity(99)  # warm-up
    speed = (await bench.capacity(0)).tokens_per_s / bench.slots
    bench.tokens = max(20, min(220, int(speed * SERVICE_S)))
    print(
        f"\nreal: {bench.slots} engine host{'s' * (bench.slots > 1)}, {speed:.0f} tokens/s each when all work; "
        f"requests of {bench.tokens} tokens in the mean; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    for load in loads:
        results = [await _round(bench, load, seed, seconds) for seed in range(rounds)]
        _bars(f"{load:g} x, {bench.slots} slot{'s' * (bench.slots > 1)}", results)


def _bars(at: str, results: Sequence[Round]) -> None:
    def mid(of: Callable[[Round], float]) -> float:
        return median(of(result) for result in results)

    came, floor = ([one for result in results for one in kind(result).of(CRITICAL)] for kind in (_figures, _floor))
    missed = sum((result.figures.missed(CRITICAL) for result in results), Counter[str]())
    for why, count in missed.most_common():
        print(f"  CRITICAL not served, {count}: {why}")
    made = sum(one.tokens for result in results for one in result.figures.came)
    late = sum((result.figures.late_for() for result in results), Counter[str]())
    for why, tokens in late.most_common(4):
        print(f"  late work, {tokens / made:.2%}: {why}")
    print(f"  medians of {len(results)} rounds; all {len(came)} CRITICAL requests together")
    print_bar(f"{at}: goodput", mid(lambda r: r.goodput), 0.90, "of capacity", at_least=True)
    print(f"      for the hosts' own CPU time: {mid(lambda r: r.goodput_by_cpu):.1%}")
    print_bar(f"{at}: CRITICAL served", _share(came), 0.995, "", at_least=True)
    print_bar(f"{at}: CRITICAL p99 beside unloaded", mid(lambda r: r.p99_s / r.alone_s), 1.5, "x")
    beside = mid(lambda r: r.floor_s / r.alone_s)
    print(f"      the floor itself: {beside:.2f} x unloaded, {_share(floor):.2%} served")
    print_bar(f"{at}: CRITICAL p99 beside the floor", mid(lambda r: r.p99_s / r.floor_s), 1.5, "x")
    print_bar(f"{at}: late work", mid(lambda r: r.figures.late), 0.01, "")
    print(f"      by the server's clock: {mid(lambda r: r.late_at_server):.2%}")


def _figures(result: Round) -> Figures:
    return result.figures


def _floor(result: Round) -> Figures:
    return result.floor


def _share(played: Sequence[Played]) -> float:
    return sum(one.is_in_time for one in played) / max(1, len(played))


async def _round(bench: Bench, load: float, seed: int, seconds: float) -> Round:
    alone = await bench.generate("alone", ALONE_S, load=load, stretch=1.0, seed=seed)
    before = await bench.capacity(seed)
    trace = {"load": load, "stretch": bench.slots * bench.tokens / before.tokens_per_s / SERVICE_S, "seed": seed}
    is_over = asyncio.Event()
    looking = asyncio.create_task(busy_share(bench, is_over))
    got = await bench.generate("open", seconds, **trace)
    is_over.set()
    busy = await looking
    after = await bench.capacity(seed)
    floor = await bench.generate("open", seconds, **trace, only=CRITICAL)
    capacity = (before.tokens_per_s + after.tokens_per_s) / 2
    by_cpu = (before.tokens_per_cpu_s + after.tokens_per_cpu_s) / 2
    began_s = min(one.came_s for one in got.played)
    at_server = Figures([replace(one, ended_s=one.done_s) for one in got.played], began_s, began_s + seconds)
    result = Round(
        goodput=got.tokens_per_s / capacity,
        goodput_by_cpu=got.tokens_per_cpu_s / by_cpu,
        figures=got.figures,
        late_at_server=at_server.late,
        p99_s=got.figures.p99_s(CRITICAL),
        alone_s=p99(one.ended_s - one.came_s for one in alone.played),
        floor=floor.figures,
        floor_s=floor.figures.p99_s(CRITICAL),
    )
    shares = "  ".join(f"{p.name} {got.figures.served(p):.1%}" for p in Priority)
    outcomes = Counter(one.outcome for one in got.played)
    back = [one.ended_s - one.done_s for one in got.played]
    alone_speed = sum(one.tokens for one in alone.played) / sum(one.done_s - one.came_s for one in alone.played)
    cores = ", ".join(f"{name} {cpu_s / seconds:.2f}" for name, cpu_s in got.cpu_s.items())
    print(
        f"{load:4g} x  capacity {before.tokens_per_s:.0f} / {after.tokens_per_s:.0f} tok/s"
        f"  goodput {result.goodput:6.1%} (for the hosts' CPU time {result.goodput_by_cpu:.1%})  busy {busy:6.1%}"
        f"  late {got.figures.late:6.2%}\n"
        f"        served {shares}  {dict(outcomes.most_common())}\n"
        f"        CRITICAL p99 {result.p99_s * 1e3:.0f} ms; alone: unloaded {result.alone_s * 1e3:.0f} ms, floor "
        f"{result.floor_s * 1e3:.0f} ms; a slot's speed {capacity / bench.slots / alone_speed:.2f} x that of one\n"
        f"        cores: {cores}, of {os.cpu_count()}; load {os.getloadavg()[0]:.1f}; p99 of sending late "
        f"{p99(got.slips_s) * 1e3:.0f} ms, there {p99(got.on_the_way_s) * 1e3:.0f} ms, back {p99(back) * 1e3:.0f} ms",
        flush=True,
    )
    return result
