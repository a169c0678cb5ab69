"""Load and first token of a compiled model whose files are not in memory, with and without read-ahead.

    python bench/cold_start.py [--rounds 5] [--work FOLDER] [--graph FOLDER]

--work is that of bench/runtime_compile.py, whose model it takes; --graph is where the compiled graph is put (default:
in --work): name a folder of another disk to measure that. Every run is a process of its own, the two take turns. What a
device reads ahead by itself decides the result and is printed; to change it for a trial, put a file system on a loop
device and write to its queue/read_ahead_kb (root). Only the model's files are cold: the program's are in memory.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
FILES = ("graph.onnx", "weights.bin")
NOWHERE = Path("/nonexistent")
"""So that the device's own read-ahead does not switch ours off."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "runtime")
    parser.add_argument("--graph", type=Path)
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    model, graph = args.work / "270m", args.graph or args.work / "cold"
    if args.part:
        print(json.dumps(part(model, graph, args.part)))
        return
    if not (graph / "header.json").exists():
        graph.mkdir(parents=True, exist_ok=True)
        bench = Path(__file__).with_name("runtime_compile.py")
        subprocess.run([sys.executable, bench, "--part", "compile", model, graph], check=True)
    device = (graph / FILES[1]).stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    print(f"device reads ahead {setting.read_text().strip() if setting.exists() else '?'} KiB; load {os.getloadavg()}")
    found: dict[str, list[dict[str, float]]] = {"without": [], "with": []}
    for number in range(args.rounds):
        for how in sorted(found, reverse=number % 2 == 0):
            found[how].append(child(args.work, graph, how))
    for how, runs in found.items():
        words = [f"{name} {median(run[name] for run in runs):.3f}" for name in runs[0]]
        first = [run["first_s"] for run in runs]
        print(f"{how:8} n={len(runs)}  " + "  ".join(words) + f"  (first {min(first):.3f} - {max(first):.3f})")
    ratio = median(r["first_s"] for r in found["without"]) / median(r["first_s"] for r in found["with"])
    print(f"with read-ahead the first token comes {ratio:.2f} x sooner")


def child(work: Path, graph: Path, how: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--work", work, "--graph", graph, "--part", how]
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def part(model: Path, graph: Path, how: str) -> dict[str, float]:
    from kensho.runtime.engine.session import Session
    from kensho.runtime.system.read_ahead import read_ahead

    for name in FILES:
        make_cold(graph / name)
    files = [graph / name for name in FILES]
    work: Callable[[], object] = (lambda: read_ahead(files, sysfs=NOWHERE)) if how == "with" else (lambda: None)
    reading = threading.Thread(target=work)
    began_s, cpu_s = time.perf_counter(), time.process_time()
    reading.start()
    with closing(Session.load(graph, model, tier="mapped", max_context=2048, threads=1)) as session:
        loaded_s = time.perf_counter()
        session.append(range(5, 21))
        first_s = time.perf_counter()
    reading.join()
    return {
        "load_s": loaded_s - began_s,
        "first_s": first_s - began_s,
        "cpu_s": time.process_time() - cpu_s,
    }


def make_cold(path: Path) -> None:
    """Out of the page cache, or the end of the benchmark: its figures would be those of a warm file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(descriptor, [bytearray(1)], os.fstat(descriptor).st_size // 2, os.RWF_NOWAIT)
        except BlockingIOError:
            return
        sys.exit(f"{path} stays in memory on this file system: name another with --graph")
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
