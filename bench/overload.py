"""Overload: is the capacity used for work that is still wanted, and is the important work served?

    python bench/overload.py [--seeds 5] [--rounds 3] [--seconds 20] [--only simulation|virtual|real] [--slots 1|2]

Three views of the same traces. simulation: the queue of Kensho beside a FIFO of 512 (Ollama's), a FIFO of 100, a
PriorityQueue of 100 that refuses when it is full, and Netflix's Gradient2 limit before a FIFO (bench/peers/queues.py),
on four slots. virtual: the real scheduler on scripted engines in virtual time, so that nothing but the scheduler is
measured. real: the real scheduler with real engine hosts (bench/overload_real.py). A slot is an engine there.

Goodput: work that was in time, as a share of what is possible. Late work was done and was not in time. Of it `hopeless`
is work on jobs that are longer than their whole deadline, which nobody can serve and nobody can avoid who does not know
their length; `waited` is the rest. Floor: the CRITICAL requests of the same trace if nobody else were there, in their
order, each to its end. Deadlines are 1, 1, 2 and 5 s for CRITICAL, HIGH, NORMAL and LOW, at a mean service of 100 ms;
the mix is 5, 15, 50 and 30 %.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent / "peers"))
sys.path.insert(0, str(Path(__file__).parent))
from queues import Fifo, Gradient2, PriorityQueue

from harness import print_bar, print_machine
from kensho.resilience.admission import Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.testing.load import Job, Trace, arrivals, brownout, bursts, hang, step
from kensho.testing.play import TOKEN_S, Figures, p99, play_virtual
from kensho.testing.simulation import KenshoPolicy, Policy, Result, simulate
from overload_real import real

MAX_TOKENS, LENGTH = "Kensho, told max_tokens", "Kensho, told the length"
CONTESTANTS: dict[str, Callable[[], Policy]] = {
    "Kensho": lambda: KenshoPolicy(AdmissionSettings()),
    MAX_TOKENS: lambda: KenshoPolicy(AdmissionSettings(), told="most"),
    LENGTH: lambda: KenshoPolicy(AdmissionSettings(), told="length"),
    "FIFO 512": lambda: Fifo(512),
    "FIFO 100": lambda: Fifo(100),
    "PriorityQueue 100": lambda: PriorityQueue(100),
    "Gradient2": Gradient2,
}
LOADS = (2.0, 3.0, 10.0)


def unloaded(sigma: float) -> Trace:
    return Trace("a fifth of the load", load=lambda _: 0.2, ends_s=1510.0, sigma=sigma)


def middle(results: Sequence[Result], of: Callable[[Result], float]) -> float:
    return median(of(result) for result in results)


# --- simulation ---


def simulation(seeds: int) -> None:
    steps = [step(2), step(3), step(10), *(step(load, sigma=1.0) for load in LOADS)]
    for trace in [*steps, brownout(), hang(), bursts()]:
        tail = ", heavy tail (sigma 1.0)" if trace.sigma > 0.5 else ""
        print(f"\nsimulated: {trace.name}{tail}; 4 slots, medians of {seeds} seeds")
        print(f"{'':<24} goodput   late: hopeless waited   served: CRITICAL (possible)   HIGH NORMAL   LOW   CRIT. p99")
        jobs = [arrivals(trace, seed=seed) for seed in range(1, seeds + 1)]
        found = {name: [simulate(one, trace, make()) for one in jobs] for name, make in CONTESTANTS.items()}
        for name, results in found.items():
            print(f"{name:<24} {middle(results, lambda r: r.goodput):7.1%} {_row(results)}", flush=True)
        floors = [simulate(_critical(one), trace, Fifo(10**9)) for one in jobs]
        print(f"{'floor: CRITICAL alone':<24} {'':7} {_row(floors)}")
        if trace in steps:
            _simulation_bars(trace, found, floors)
        elif trace.name.startswith("bursts"):
            best = max(middle(results, lambda r: r.goodput) for results in found.values())
            own = middle(found["Kensho"], lambda r: r.goodput)
            print_bar("goodput beside the best (nobody fills the pauses)", own / best, 0.90, "", at_least=True)
        elif trace.name.startswith("brownout"):
            served = {name: middle(results, lambda r: r.served(Priority.CRITICAL)) for name, results in found.items()}
            best = max(share for name, share in served.items() if not name.startswith("Kensho"))
            print_bar("CRITICAL served beside the best of the others", served["Kensho"] / best, 1.0, "", at_least=True)
            told = middle(found[MAX_TOKENS], lambda r: r.goodput)
            print_bar(f"{MAX_TOKENS}: goodput", told, 0.90, "of what the slots can do", at_least=True)
        else:
            own = middle(found["Kensho"], lambda r: r.goodput)
            print_bar("goodput", own, 0.90, "of what the slots can do", at_least=True)


def _critical(jobs: Sequence[Job]) -> list[Job]:
    return [job for job in jobs if job.priority is Priority.CRITICAL]


def _row(results: Sequence[Result]) -> str:
    served = [middle(results, lambda result, p=p: result.served(p)) for p in Priority]
    possible = middle(results, lambda r: r.served(Priority.CRITICAL, of_possible=True))
    return (
        f"{middle(results, lambda r: r.hopeless):14.2%} {middle(results, lambda r: r.waited):7.2%}"
        f"           {served[0]:7.2%} ({possible:7.2%})  {served[1]:6.1%} {served[2]:6.1%} {served[3]:6.1%}"
        f"   {middle(results, lambda r: r.p99_s(Priority.CRITICAL)) * 1e3:6.0f} ms"
    )


def _simulation_bars(trace: Trace, found: dict[str, list[Result]], floors: Sequence[Result]) -> None:
    results, quiet = found["Kensho"], unloaded(trace.sigma)
    calm = [simulate(arrivals(quiet, seed=seed), quiet, KenshoPolicy(AdmissionSettings())) for seed in (1, 2, 3)]
    calm_p99_s = middle(calm, lambda r: r.p99_s(Priority.CRITICAL))
    is_heavy = trace.sigma > 0.5
    print_bar("goodput", middle(results, lambda r: r.goodput), 0.90 if is_heavy else 0.95, "", at_least=True)
    print_bar("CRITICAL served", middle(results, lambda r: r.served(Priority.CRITICAL)), 0.995, "", at_least=True)
    p99_s = middle(results, lambda r: r.p99_s(Priority.CRITICAL))
    floor_s = middle(floors, lambda r: r.p99_s(Priority.CRITICAL))
    print_bar(f"CRITICAL p99 beside unloaded ({calm_p99_s * 1e3:.0f} ms)", p99_s / calm_p99_s, 1.5, "x")
    print(f"      beside the floor: {p99_s / floor_s:.2f} x; the floor itself is {floor_s / calm_p99_s:.2f} x unloaded")
    print_bar("late work", middle(results, lambda r: r.late), 0.01, "")
    if is_heavy:
        print_bar("... of it by waiting", middle(results, lambda r: r.waited), 0.01, "")
        told = found[LENGTH]
        print_bar(f"{LENGTH}: goodput", middle(told, lambda r: r.goodput), 0.90, "", at_least=True)
        possible = middle(told, lambda r: r.served(Priority.CRITICAL, of_possible=True))
        print_bar(f"{LENGTH}: CRITICAL served of the possible", possible, 0.995, "", at_least=True)
        print_bar(f"{LENGTH}: late work", middle(told, lambda r: r.late), 0.01, "")


# --- the real scheduler, scripted engines, virtual time ---


def virtual(seeds: int, slots: int) -> None:
    print(f"\nvirtual: the real scheduler on {slots} scripted engine{'s' * (slots > 1)}; a minute for each load")
    print(
        "        goodput: least to most    late: median, most   served: CRITICAL  HIGH NORMAL   LOW   "
        f"CRITICAL p99 (all {seeds} seeds): it, floor, unloaded"
    )
    for load in LOADS:
        trace = step(load, slots=slots)
        most_tokens = slots * (trace.ends_s - trace.begins_s) / TOKEN_S
        numbers = range(1, seeds + 1)
        plays = [play_virtual(trace, seed=seed) for seed in numbers]
        floors = [play_virtual(trace, seed=seed, only=Priority.CRITICAL) for seed in numbers]
        single = [Figures(played, trace.begins_s, trace.ends_s) for played in plays]
        merged, floor = (
            Figures([one for played in kind for one in played], trace.begins_s, trace.ends_s)
            for kind in (plays, floors)
        )
        p99_s, floor_s = merged.p99_s(Priority.CRITICAL), floor.p99_s(Priority.CRITICAL)
        alone_s = p99(one.tokens * TOKEN_S for one in floor.of(Priority.CRITICAL))
        served = [merged.served(p) for p in Priority]
        goodputs = sorted(figures.good_tokens / most_tokens for figures in single)
        late = [figures.late for figures in single]
        print(
            f"{load:4g} x  {median(goodputs):6.1%}: {goodputs[0]:6.1%} to {goodputs[-1]:6.1%}"
            f"   {median(late):6.2%}, {max(late):6.2%}"
            f"     {served[0]:8.2%}  {served[1]:6.1%} {served[2]:6.1%} {served[3]:6.1%}"
            f"   {p99_s * 1e3:4.0f} ms = {p99_s / alone_s:.2f} x, {floor_s * 1e3:.0f} ms = {floor_s / alone_s:.2f} x, "
            f"{alone_s * 1e3:.0f} ms; of {len(merged.of(Priority.CRITICAL))}"
        )
        for why, count in merged.missed(Priority.CRITICAL).most_common():
            print(f"        CRITICAL not served, {count}: {why}")
        print(f"        floor: CRITICAL served {floor.served(Priority.CRITICAL):.2%}")
        print_bar("goodput", median(goodputs), 0.95, "of capacity", at_least=True)
        print_bar("CRITICAL served", served[0], 0.995, "", at_least=True)
        print_bar("CRITICAL p99 beside unloaded", p99_s / alone_s, 1.5, "x")
        print_bar("CRITICAL p99 beside the floor", p99_s / floor_s, 1.1, "x")
        print_bar("late work", median(late), 0.01, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", choices=["simulation", "virtual", "real"])
    parser.add_argument("--slots", type=int, choices=[1, 2], help="engines of the virtual and real parts (both)")
    args = parser.parse_args()
    print_machine("onnxruntime")
    if args.only in {None, "simulation"}:
        simulation(args.seeds)
    for slots in (args.slots,) if args.slots else (2, 1):
        if args.only in {None, "virtual"}:
            virtual(args.seeds, slots)
        if args.only in {None, "real"}:
            asyncio.run(real(args.rounds, args.seconds, slots, LOADS))
    print_machine("onnxruntime")


if __name__ == "__main__":
    main()
