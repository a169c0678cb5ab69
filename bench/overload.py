"""Overload: is the capacity used for work that is still wanted, and is the important work served?

    python bench/overload.py [--seeds 5] [--rounds 3] [--seconds 20] [--only simulation|real]

First a simulation, on the same traces and seeds for everyone: the queue of Kensho beside a FIFO of 512 (Ollama's),
a FIFO of 100, a PriorityQueue of 100 that refuses when it is full, and Netflix's Gradient2 limit before a FIFO
(bench/peers/queues.py). Then the real scheduler with one real engine host and the demonstration model, the load from a
process of its own. Its capacity is measured just before and after each round, closed loop, since the machine is shared.

Goodput: work that was in time, as a share of the capacity. Late: work that was done and was not in time. Deadlines are
1, 1, 2 and 5 s for CRITICAL, HIGH, NORMAL and LOW, at a mean service of 100 ms; the mix is 5, 15, 50 and 30 %. Busy:
the share of the time in which the engine had a request, whatever else the machine did meanwhile.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "peers"))
sys.path.insert(0, str(Path(__file__).parent))
from queues import Fifo, Gradient2, PriorityQueue

from harness import print_bar, print_machine
from kensho.base.clock import SystemClock
from kensho.base.errors import DeadlineMissed, KenshoError, Overloaded
from kensho.base.events import Event
from kensho.base.inference import Sampling
from kensho.resilience.admission import AdmissionSettings, Priority, parse_priority
from kensho.resilience.scheduler import SchedulerSettings
from kensho.testing.load import Trace, arrivals, brownout, bursts, hang, step
from kensho.testing.real_engines import PROMPT_IDS, REHEARSAL, Stage, compile_demo, two_engines
from kensho.testing.simulation import KenshoPolicy, Policy, Result, simulate

CONTESTANTS: dict[str, Callable[[], Policy]] = {
    "Kensho": lambda: KenshoPolicy(AdmissionSettings()),
    "FIFO 512": lambda: Fifo(512),
    "FIFO 100": lambda: Fifo(100),
    "PriorityQueue 100": lambda: PriorityQueue(100),
    "Gradient2": Gradient2,
}
GENERATOR = Path(__file__).with_name("overload_generator.py")


def unloaded(sigma: float) -> Trace:
    return Trace("a fifth of the load", load=lambda _: 0.2, ends_s=1510.0, sigma=sigma)


def middle(results: Sequence[Result], of: Callable[[Result], float]) -> float:
    return median(of(result) for result in results)


# --- simulation ---


def simulation(seeds: int) -> None:
    traces = [step(2), step(3), step(10), step(10, sigma=1.0), brownout(), hang(), bursts()]
    for trace in traces:
        tail = ", heavy tail (sigma 1.0)" if trace.sigma > 0.5 else ""
        print(f"\nsimulated: {trace.name}{tail}; medians of {seeds} seeds")
        print(f"{'':<20} goodput   busy    late   served: CRITICAL   HIGH  NORMAL    LOW   CRITICAL p99")
        found = {
            name: [simulate(arrivals(trace, seed=seed), trace, make()) for seed in range(1, seeds + 1)]
            for name, make in CONTESTANTS.items()
        }
        for name, results in found.items():
            served = [middle(results, lambda result, p=p: result.served(p)) for p in Priority]
            print(
                f"{name:<20} {middle(results, lambda r: r.goodput):7.1%} {middle(results, lambda r: r.late):7.2%}"
                f"           {served[0]:8.1%} {served[1]:6.1%}  {served[2]:6.1%} {served[3]:6.1%}"
                f"   {middle(results, lambda r: r.p99_s(Priority.CRITICAL)) * 1e3:6.0f} ms"
            )
        if "x the load" in trace.name:
            _simulation_bars(trace, found["Kensho"])
        elif trace.name.startswith("bursts"):
            best = max(middle(results, lambda r: r.goodput) for results in found.values())
            own = middle(found["Kensho"], lambda r: r.goodput)
            print_bar(
                "goodput beside the best contestant (nobody fills the pauses)", own / best, 0.90, "", at_least=True
            )
        else:
            own = middle(found["Kensho"], lambda r: r.goodput)
            print_bar("goodput", own, 0.90, "of what the slots can do", at_least=True)


def _simulation_bars(trace: Trace, results: Sequence[Result]) -> None:
    calm = [
        simulate(arrivals(unloaded(trace.sigma), seed=seed), unloaded(trace.sigma), KenshoPolicy(AdmissionSettings()))
        for seed in (1, 2, 3)
    ]
    calm_p99_s = middle(calm, lambda r: r.p99_s(Priority.CRITICAL))
    print_bar("goodput", middle(results, lambda r: r.goodput), 0.95 if trace.sigma == 0.5 else 0.90, "", at_least=True)
    print_bar("CRITICAL served", middle(results, lambda r: r.served(Priority.CRITICAL)), 0.995, "", at_least=True)
    p99 = middle(results, lambda r: r.p99_s(Priority.CRITICAL)) / calm_p99_s
    print_bar(f"CRITICAL p99 beside unloaded ({calm_p99_s * 1e3:.0f} ms)", p99, 1.5, "x")
    print_bar("late work", middle(results, lambda r: r.late), 0.01, "")


# --- the real scheduler ---


@asynccontextmanager
async def served(stage: Stage, path: Path) -> AsyncIterator[None]:
    """Requests as JSON lines; each is a whole answer with a deadline."""
    tasks: set[asyncio.Task[None]] = set()
    clock = SystemClock()

    async def answer(asked: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        outcome, tokens = "ok", 0
        try:
            stream = stage.scheduler.submit(
                PROMPT_IDS,
                Sampling(max_tokens=asked["tokens"]),
                priority=parse_priority(asked["priority"]),
                deadline_s=clock.monotonic_s() + asked["within_s"],
                is_whole=True,
            )
            async for _ in stream:
                tokens += 1
        except DeadlineMissed:
            outcome = "deadline"
        except Overloaded as error:
            outcome = str(error.facts.get("reason"))
        except KenshoError as error:
            outcome = error.code
        writer.write(json.dumps({"id": asked["id"], "outcome": outcome, "tokens": tokens}).encode() + b"\n")

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            task = asyncio.create_task(answer(json.loads(line), writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_unix_server(listen, path)
    try:
        yield
    finally:
        server.close()
        await asyncio.gather(*tasks)


async def busy_share(stage: Stage, until: asyncio.Event) -> float:
    """Share of the time in which the engine had a request, looked at a hundred times a second."""
    looks = busy = 0
    while not until.is_set():
        looks += 1
        busy += stage.scheduler.snapshot().running > 0
        await asyncio.sleep(0.01)
    return busy / max(1, looks)


async def generate(path: Path, kind: str, **how: Any) -> dict[str, Any]:
    child = await asyncio.create_subprocess_exec(
        sys.executable, GENERATOR, str(path), kind, json.dumps(how), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    if child.returncode:
        sys.exit("the load generator failed")
    result: dict[str, Any] = json.loads(out)
    return result


def p99_ms(ranked: list[float]) -> float:
    return ranked[int(0.99 * (len(ranked) - 1))] * 1e3 if ranked else 0.0


async def real(rounds: int, seconds: float) -> None:
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "graph").mkdir()
        graph = await asyncio.to_thread(compile_demo, folder / "graph")
        settings = SchedulerSettings(breaker=REHEARSAL, standby="on_demand")
        async with two_engines(graph, emit=events.append, settings=settings) as stage, served(stage, folder / "socket"):
            await _real_rounds(stage, folder / "socket", rounds, seconds)
    opened = [event for event in events if "Open" in type(event).__name__]
    print_bar("circuits opened by overload", len(opened), 0, "")


async def _real_rounds(stage: Stage, path: Path, rounds: int, seconds: float) -> None:
    first = await generate(path, "closed", at_once=3, tokens=150, for_s=4, seed=0)
    tokens = max(20, min(220, int(first["good_tokens_per_s"] * 0.1)))
    print(
        f"\nreal: one engine host, {first['good_tokens_per_s']:.0f} tokens/s; requests of {tokens} tokens in the mean"
    )
    print(
        "       capacity before/after   goodput   busy   late     "
        "served: CRIT.   HIGH  NORMAL     LOW   CRITICAL p99 (alone)"
    )
    found: dict[float, list[tuple[float, float, float, float]]] = {}
    for number in range(rounds):
        for load in (2.0, 3.0, 10.0):
            alone = await generate(path, "closed", at_once=1, tokens=tokens, for_s=6, seed=number, priority=0)
            before = (await generate(path, "closed", at_once=3, tokens=tokens, for_s=4, seed=number))[
                "good_tokens_per_s"
            ]
            per_s = before / tokens
            factor = 10.0 / per_s  # deadlines are ten times the mean service for CRITICAL, as in the simulation
            is_over = asyncio.Event()
            looking = asyncio.create_task(busy_share(stage, is_over))
            got = await generate(
                path, "open", load=load, per_s=per_s, tokens=tokens, for_s=seconds, seed=number, deadline_factor=factor
            )
            is_over.set()
            busy = await looking
            after = (await generate(path, "closed", at_once=3, tokens=tokens, for_s=4, seed=number))[
                "good_tokens_per_s"
            ]
            goodput = got["good_tokens_per_s"] / ((before + after) / 2)
            shares = [good / max(1, came) for good, came in zip(got["good"], got["came"], strict=True)]
            p99, calm = p99_ms(got["seconds"]["CRITICAL"]), p99_ms(alone["seconds"]["CRITICAL"])
            found.setdefault(load, []).append((goodput, shares[0], p99 / calm, got["late_share"]))
            served_words = "  ".join(f"{share:6.1%}" for share in shares)
            print(
                f"{load:4g} x   {before:7.0f} /{after:7.0f} tok/s  {goodput:7.1%} {busy:6.1%} {got['late_share']:6.2%}"
                f"          {served_words}   {p99:5.0f} ms ({calm:.0f} ms)  {got['outcomes']}",
                flush=True,
            )
    for load, results in found.items():
        goodput, critical, p99, late = (median(column) for column in zip(*results, strict=True))
        print_bar(f"{load:g} x: goodput, median of {rounds}", goodput, 0.90, "of capacity", at_least=True)
        print_bar(f"{load:g} x: CRITICAL served", critical, 0.995, "", at_least=True)
        print_bar(f"{load:g} x: CRITICAL p99 beside alone", p99, 1.5, "x")
        print_bar(f"{load:g} x: late work", late, 0.01, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", choices=["simulation", "real"])
    args = parser.parse_args()
    print_machine("onnxruntime")
    if args.only != "real":
        simulation(args.seeds)
    if args.only != "simulation":
        asyncio.run(real(args.rounds, args.seconds))
    print_machine("onnxruntime")


if __name__ == "__main__":
    main()
