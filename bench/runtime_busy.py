"""One engine among six busy processes: does it still answer, and at what cost to the others?

    python bench/runtime_busy.py [--rounds 5] [--work FOLDER] [--peers PYTHON]

The models and peers of bench/runtime_peers.py. Each engine decodes for two seconds in a process of its own, with two
threads, alone and then beside the busy ones, turn and turn about; medians. "Share" is the busy rate divided by the
quiet one; with N processors and a fair kernel a program of one thread would have N/7 of one. "Idle cpu" is what the
engine burns in the half second after an answer, scaled to a second.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from runtime_peers import (
    LLAMA,
    MAPPED,
    OPENVINO,
    ORT,
    PACKED,
    Numbers,
    Runs,
    arguments,
    prepare,
    present,
    print_machine,
    run,
)

BUSY = 6
THREADS = 2
ENGINES = (MAPPED, PACKED, LLAMA, OPENVINO, ORT)
BAR = 0.1
"""Of the quiet rate, for Kensho."""


def main() -> None:
    args = arguments(__doc__)
    python = {name: own for name, own in present(args.work, args.peers).items() if name in ENGINES}
    prepare(args.work, python)
    print_machine(python)
    found: Runs = {name: [] for name in python}
    for number in range(args.rounds):
        names = list(python)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            found[name].append(measure(name, args.work, python[name]))
        print(f"round {number + 1} of {args.rounds}: load average {os.getloadavg()[0]:.1f}", flush=True)
    print(
        f"\n{THREADS} threads, medians of {args.rounds}: tokens a second, CPU ms of a token, CPU ms a second after it"
    )
    columns = ("quiet tokens/s", "busy tokens/s", "share", "quiet cpu/token", "busy cpu/token", "idle cpu")
    print(f"{'':26}" + "".join(f"{column:>17}" for column in columns))
    for name, runs in found.items():
        values = {column: median(one[column] for one in runs) for column in columns}
        print(f"{name:26}" + "".join(f"{values[column]:17.3g}" for column in columns))
        if name in (MAPPED, PACKED):
            verdict = "PASS" if values["share"] >= BAR else "MISS"
            print(f"  {verdict}  share of the quiet rate: {values['share']:.2f} (bar: >= {BAR:g})")
    for peer in (LLAMA, OPENVINO, ORT):
        if peer in found:
            rate = {name: median(one["busy tokens/s"] for one in found[name]) for name in (MAPPED, PACKED, peer)}
            print(f"busy: mapped {rate[MAPPED] / rate[peer]:.1f} x, packed {rate[PACKED] / rate[peer]:.1f} x {peer}")


def measure(name: str, work: Path, python: Path) -> Numbers:
    quiet = run("decode", name, work, python, THREADS)
    after = run("idle", name, work, python, THREADS)
    with busy_processes():
        busy = run("decode", name, work, python, THREADS)
    both = {f"{kind} {key}": value for kind, part in (("quiet", quiet), ("busy", busy)) for key, value in part.items()}
    return {**both, **after, "share": busy["tokens/s"] / quiet["tokens/s"]}


@contextmanager
def busy_processes() -> Iterator[None]:
    """They end by themselves after five minutes of CPU time, should nobody end them."""
    code = "import time\nprint(flush=True)\nwhile time.process_time() < 300: pass"
    with ExitStack() as stack:
        for _ in range(BUSY):
            process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout
            process.stdout.readline()
        yield


if __name__ == "__main__":
    main()
