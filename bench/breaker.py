"""What a breaker costs per call, and what it lets through: Kensho's beside those that Python programs use today.

    python -m venv build/breaker-peers && build/breaker-peers/bin/pip install -r requirements/breaker-peers.in
    python bench/breaker.py --peers build/breaker-peers [--rounds 9]

Overhead: CPU time of a call through the breaker less that of the plain call, median over rounds in which the
contestants take turns. Bars of issue 6: at most 1 us (sync) and 1.2 us (async), and not more than circuitbreaker's.
"kensho" does what the others do. "kensho guard" is the call as the product makes it: how long it took is measured for
the rate of slow calls, and whether the machine slept is asked; it is held to the bars in us.
Probes: the questions of bench/breaker_probes.py, with threads or an event loop, and a backend that is dead.
"""

import argparse
import asyncio
import importlib.metadata
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from breaker_peers import KINDS, PEERS, AsyncCall, Call, Peer, installed
from breaker_probes import PROBES

CALLS = 20_000
PRODUCT = ("kensho, timed", "kensho guard")  # the same breaker with what Kensho adds for itself
SYNC_BAR_NS, ASYNC_BAR_NS = 1_000, 1_200


def plain() -> None:
    return None


async def plain_async() -> None:
    return None


def cpu_ns(call: Call, calls: int) -> float:
    began = time.thread_time_ns()
    for _ in range(calls):
        call()
    return (time.thread_time_ns() - began) / calls


async def cpu_ns_async(call: AsyncCall, calls: int) -> float:
    began = time.thread_time_ns()
    for _ in range(calls):
        await call()
    return (time.thread_time_ns() - began) / calls


def overheads(kinds: list[type[Peer]], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    sync: dict[str, list[float]] = {kind.name: [] for kind in kinds if kind.has_sync}
    asyn: dict[str, list[float]] = {kind.name: [] for kind in kinds if kind.has_async}
    for turn in range(rounds):
        order = kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]
        bare, bare_async = cpu_ns(plain, CALLS), asyncio.run(cpu_ns_async(plain_async, CALLS))
        for kind in order:
            calls = CALLS // 20 if kind.is_retry else CALLS
            if kind.has_sync:
                guarded = kind(60.0).guard(plain)
                guarded()
                sync[kind.name].append(cpu_ns(guarded, calls) - bare)
            if kind.has_async:
                asyn[kind.name].append(asyncio.run(_guarded_async(kind, calls)) - bare_async)
    return sync, asyn


async def _guarded_async(kind: type[Peer], calls: int) -> float:
    guarded = kind(60.0).guard_async(plain_async)
    await guarded()
    return await cpu_ns_async(guarded, calls)


def refusals(kinds: list[type[Peer]], rounds: int) -> dict[str, list[float]]:
    """Of a call while open, the exception included."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for kind in kinds:
            if not kind.has_sync or kind.is_retry or kind.name in PRODUCT:
                continue
            guarded = kind(1e6).guard(_dead)
            for _ in range(4):
                _swallow(guarded)
            found.setdefault(kind.name, []).append(cpu_ns(lambda call=guarded: _swallow(call), CALLS // 4))
    return found


def _dead() -> None:
    raise OSError("dead")


def _swallow(call: Call) -> None:
    try:
        call()
    except Exception:  # whatever its word for "open" is
        return


def show(title: str, measured: dict[str, list[float]], bar_ns: float | None) -> list[str]:
    print(f"\n{title}, ns of CPU: median (least to most) of {len(next(iter(measured.values())))} rounds")
    ours = median(measured["kensho"])
    for name, values in sorted(measured.items(), key=lambda one: median(one[1])):
        ratio = f"{median(values) / ours:5.1f} x"
        print(f"  {name:16} {median(values):8.0f}  ({min(values):.0f} to {max(values):.0f})  {ratio}")
    if bar_ns is None:
        return []
    failed = []
    for name in ("kensho", "kensho guard"):
        cost_ns = median(measured[name])
        bars = {f"<= {bar_ns:.0f} ns": bar_ns}
        if name == "kensho" and "circuitbreaker" in measured:
            bars["<= circuitbreaker's"] = median(measured["circuitbreaker"])
        missed = [f"{title}: {name} {cost_ns:.0f} ns, bar {bar}" for bar, most_ns in bars.items() if cost_ns > most_ns]
        print(f"  bar for {name}: {' and '.join(bars)}: {'NOT met' if missed else 'met'}")
        failed += missed
    return failed


def show_probes(kinds: list[type[Peer]]) -> list[str]:
    kinds = [kind for kind in kinds if not kind.is_retry and kind.name not in PRODUCT]
    width = max(len(kind.name) for kind in kinds) + 2
    print(f"\n{'probe (threshold 3, tried again after 0.2 s)':58}" + "".join(f"{kind.name:>{width}}" for kind in kinds))
    failed = []
    for question, ask, right in PROBES:
        answers = [ask(kind) for kind in kinds]
        print(f"{question:58}" + "".join(f"{answer:>{width}}" for answer in answers), flush=True)
        if answers[0] != right:
            failed.append(f"{question}: {answers[0]}, wanted {right}")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=Path("build/breaker-peers"), help="their virtual environment")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    sys.path += map(str, args.peers.glob("lib/python*/site-packages"))
    kinds, absent = installed()
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PEERS if name not in absent]
    print("beside: " + (", ".join(versions) or "nobody"))
    if absent:
        print(f"absent, so not measured: {', '.join(absent)} (see requirements/breaker-peers.in)")
    sync, asyn = overheads(kinds, args.rounds)
    checks: list[Callable[[], list[str]]] = [
        lambda: show("overhead of a sync call that succeeds", sync, SYNC_BAR_NS),
        lambda: show("overhead of an async call that succeeds", asyn, ASYNC_BAR_NS),
        lambda: show("a call that is refused while open", refusals(kinds, args.rounds), None),
        lambda: show_probes(kinds),
    ]
    failed = [line for check in checks for line in check()]
    for line in failed:
        print(f"NOT MET  {line}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    assert KINDS
    main()
