"""One measurement of one engine, in a process of its own; prints JSON. Run by the benchmarks under the engine's Python.

    python child.py PART ENGINE WORK_FOLDER THREADS

Milliseconds, wall and CPU of the whole process (all threads); memory in MB, RssAnon of /proc.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from engines import Engine, make_engine

Numbers = dict[str, float]
DECODED = 48


def main() -> None:
    part, name, work, threads = sys.argv[1:5]
    if part == "has":
        make_engine(name, Path(work))
        return
    engine = make_engine(name, Path(work))
    print(json.dumps(PARTS[part](engine, int(threads))), flush=True)


class Stopwatch:
    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    def read(self, name: str) -> Numbers:
        return {
            f"{name} wall": (time.perf_counter() - self._wall_s) * 1e3,
            f"{name} cpu": (time.process_time() - self._cpu_s) * 1e3,
        }


def prompt(length: int) -> list[int]:
    return [(5 + index * 7919) % 262144 for index in range(length)]


def steady(engine: Engine, threads: int) -> Numbers:
    """A loaded engine that has run before: a prompt of 512 and of 128, then single tokens."""
    engine.load(threads)
    found: Numbers = {}
    for length in (128, 512):
        runs = []
        for _ in range(4):
            engine.forget()
            watch = Stopwatch()
            engine.feed(prompt(length)).argmax()
            runs.append(watch.read(f"p{length}"))
        found |= middle(runs[1:])  # the first takes its memory
    engine.forget()
    engine.feed(prompt(16))
    for token in range(8):
        engine.feed([100 + token])
    watch = Stopwatch()
    for token in range(DECODED):
        engine.feed([1000 + token]).argmax()
    decoded = watch.read("token")
    return {**found, **{name: value / DECODED for name, value in decoded.items()}}


def loads(engine: Engine, threads: int) -> Numbers:
    """Loading: the first of the process, then again in the resident one, alone and with the first token of a prompt."""
    before_mb = own_memory_mb()
    watch = Stopwatch()
    engine.load(threads)
    found = watch.read("first load") | {"load memory": own_memory_mb() - before_mb}
    engine.feed(prompt(16)).argmax()
    found |= watch.read("first load+p16") | {"own memory": own_memory_mb()}
    engine.close()
    runs: list[Numbers] = []
    for _ in range(2):
        one: Numbers = {}
        for length in (16, 128, 512):
            watch = Stopwatch()
            engine.load(threads)
            if length == 16:
                one |= watch.read("load")
            engine.feed(prompt(length)).argmax()
            one |= watch.read(f"load+p{length}")
            engine.close()
        runs.append(one)
    return found | middle(runs)


def first(engine: Engine, threads: int) -> Numbers:
    """For the cold page cache: everything is imported, nothing of the model was read."""
    watch = Stopwatch()
    engine.load(threads)
    engine.feed(prompt(16)).argmax()
    return watch.read("load+p16")


def hold(engine: Engine, threads: int) -> Numbers:
    """Loads, answers, and waits until stdin ends, so that the parent can look at its memory."""
    engine.load(threads)
    engine.feed(prompt(16))
    print("ready", flush=True)
    sys.stdin.read()
    return {}


def decode(engine: Engine, threads: int) -> Numbers:
    """Single tokens for two seconds: for a busy machine, where a fixed count could take minutes."""
    engine.load(threads)
    engine.feed(prompt(16))
    for token in range(4):
        engine.feed([100 + token])
    watch, ended_s, count = Stopwatch(), time.perf_counter() + 2, 0
    while time.perf_counter() < ended_s:
        engine.feed([1000 + count]).argmax()
        count += 1
    found = watch.read("all")
    return {"tokens": count, "tokens/s": count / found["all wall"] * 1e3, "cpu/token": found["all cpu"] / count}


def idle(engine: Engine, threads: int) -> Numbers:
    """What its threads burn while nobody asks, just after an answer; CPU ms in each second."""
    engine.load(threads)
    engine.feed(prompt(128))
    watch = Stopwatch()
    time.sleep(0.5)
    return {"idle cpu": watch.read("idle")["idle cpu"] * 2}


def answer(engine: Engine, threads: int) -> dict[str, list[float]]:
    engine.load(threads)
    return {"logits": [float(value) for value in engine.feed(prompt(16))[::64]]}


def middle(runs: list[Numbers]) -> Numbers:
    return {name: median(run[name] for run in runs) for name in runs[0]}


def own_memory_mb() -> float:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0


PARTS: dict[str, Callable[[Engine, int], object]] = {
    part.__name__: part for part in (steady, loads, first, hold, decode, idle, answer)
}

if __name__ == "__main__":
    main()
