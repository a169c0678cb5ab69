"""An engine is killed in mid-stream: are tokens lost or repeated, and how long is the silence?

    python bench/failover.py [--kills 1000] [--seed 1]

Two real engine hosts with the demonstration model. One is killed with SIGKILL from outside at a random token; the
answer is held against the uninterrupted one, and the gap is that of the answer's own record. The prefill of the
prefix, which the bar allows on top, is measured in the same run, on the engine that went on. There is no peer: no
inference server for one machine continues a stream on another engine (docs/overload.md).
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from harness import print_bar, print_machine
from kensho.base.events import EngineLost, Event, StreamMoved
from kensho.testing.kills import KillReport, kill_rounds
from kensho.testing.real_engines import compile_demo, two_engines


def at(share: float, values: list[float]) -> float:
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


async def rehearse(folder: Path, kills: int, seed: int) -> tuple[KillReport, list[tuple[float, Event]]]:
    events: list[tuple[float, Event]] = []
    graph = await asyncio.to_thread(compile_demo, folder)
    async with two_engines(graph, emit=lambda event: events.append((time.monotonic(), event))) as stage:
        return await kill_rounds(stage, kills=kills, rng=random.Random(seed).random), events


def since_lost_ms(events: list[tuple[float, Event]]) -> list[float]:
    """From "the engine is gone, and reaped" to the next token of its stream; 0 where the token was there before."""
    found: list[float] = []
    lost_s = 0.0
    for at_s, event in events:
        if isinstance(event, EngineLost):
            lost_s = at_s
        elif isinstance(event, StreamMoved):
            after_ms = (at_s - lost_s) * 1e3
            found.append(after_ms if after_ms < event.gap_ms else 0.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print_machine("onnxruntime")
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report, events = asyncio.run(rehearse(Path(folder), args.kills, args.seed))
    seconds = time.perf_counter() - began_s
    over = [gap - prefill for gap, prefill in zip(report.gaps_ms, report.prefills_ms, strict=True)]
    print(f"{report.rounds} kills in {seconds:.0f} s, {report.moved} of them in mid-stream; seed {args.seed}")
    print(f"{'ms':<46}  median     p90     p99     max")
    for name, values in {
        "gap (from the record of the answer)": report.gaps_ms,
        "prefill of prompt and prefix": report.prefills_ms,
        "gap less prefill": over,
        "of the gap: from its reaping to the next token": since_lost_ms(events),
        "killed until proven and in use again": report.back_ms,
    }.items():
        print(f"{name:<46} {median(values):7.1f} {at(0.9, values):7.1f} {at(0.99, values):7.1f} {max(values):7.1f}")
    moved = [event for _, event in events if isinstance(event, StreamMoved)]
    is_right = print_bar("answers with a token lost, repeated or changed", report.wrong, 0, "")
    is_told = print_bar("streams that moved and said so by an event", len(moved), report.moved, "", at_least=True)
    print_bar("gap less prefill, p99", at(0.99, over), 50, "ms")
    sys.exit(not (is_right and is_told))


if __name__ == "__main__":
    main()
