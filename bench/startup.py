"""From the start of a process to the first token, and what commands cost before they do anything.

    make bench-peers    # once: the peers, in build/peers/
    python bench/startup.py [--rounds 7] [--work FOLDER] [--models FOLDER] [--peers PYTHON]

The model has the real shape of Gemma 3 270M, its 262k-entry tokenizer and random weights (in --models, as
bench/runtime_peers.py keeps them); it is published, pulled and compiled beforehand into a store in --work. The page
cache is warm, the prompt has 16 ids. A measurement is a process: wall time from its start to the first byte on stdout,
CPU of all its processes at that moment (/proc/*/schedstat) and at their end. The contestants take turns, a bare `python
-c pass` among them: on a busy machine the ratios to it say more than the milliseconds. Peers are processes that load
the same model from their own format and are given ids, not text; who is absent is named. With a daemon the CPU is the
client's alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import harness
import runtime_compile
from harness import KENSHO, ROOT

PROMPT = "Tell me a story"
"""16 ids with the tokenizer of that model, the beginning of sequence among them."""
PEERS = {
    "llama.cpp q8_0": ("model-q8_0.gguf", "write_gguf.py"),
    "openvino int8, cached": ("openvino", "write_openvino.py"),
}
"""Name -> the model's form, and what makes it."""
BARE, HELP, STATUS, RUN = "python -c pass", "kensho --help", "kensho status --json", "kensho run"
MAX_WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Start:
    """Milliseconds of one process, its children included."""

    first: float
    cpu_first: float
    end: float
    cpu_end: float


Found = Mapping[str, Sequence[Start]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "startup", help="the store, kept")
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "bench" / "runtime", help="all forms, kept")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers" / "bin" / "python")
    args = parser.parse_args()
    harness.print_machine("onnxruntime", "numpy")
    store = prepare(args.work.absolute(), args.models.absolute())
    run = [KENSHO, "--store", store, "--quiet", "run", "m", PROMPT, "--max-tokens", "1"]
    contestants: dict[str, list[object]] = {
        BARE: [sys.executable, "-c", "pass"],
        HELP: [KENSHO, "--help"],
        "kensho status, no daemon": [KENSHO, "--store", store, "--json", "status"],
        RUN: run,
    }
    contestants |= peers(args.peers, args.models.absolute())
    print("\nwithout a daemon")
    alone = rounds(contestants, args.rounds)
    print_table(alone)
    served = {tier: with_daemon(store, tier, run, args.rounds) for tier in ("packed", "mapped")}
    print_bars(alone, served)
    print_timeline(store)


# --- what is measured ---


def prepare(work: Path, models: Path) -> Path:
    """A store with the model, compiled. Kept between runs, unless the graph has to be made anew."""
    store = work / "store"
    if not (work / "ready").exists():
        model, keys, repo = runtime_compile.prepare(models), work / "keys", work / "repo"
        harness.fresh(work)
        harness.run([KENSHO, "keygen", keys])
        harness.run([KENSHO, "publish", "--model", "m", "--version", "1.0", "--to", repo, "--keys", keys, model])
        root = repo / "metadata" / "1.root.json"
        harness.run([KENSHO, "--store", store, "init", "--from", f"file://{repo}", "--root", root])
        harness.run([KENSHO, "--store", store, "--quiet", "pull", "m"])
        (work / "ready").touch()
    for _ in range(2):  # the first compiles, and after a boot the graph is proved once more
        harness.run([KENSHO, "--store", store, "--quiet", "run", "m", PROMPT, "--max-tokens", "1"])
    return store


def peers(python: Path, models: Path) -> dict[str, list[object]]:
    """The commands of those that are there; the model's form for each is made if it is not there yet."""
    found: dict[str, list[object]] = {}
    threads = min(4, len(os.sched_getaffinity(0)))
    for name, (form, maker) in PEERS.items():
        command: list[object] = [python, ROOT / "bench" / "start_peer.py", name, models, threads]
        try:
            if not (models / form).exists():
                _try([python, ROOT / "bench" / "peers" / maker, models / "270m", models / form])
            _try(command)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).splitlines()
            print(f"absent: {name} ({said[-1][:120]}); run `make bench-peers`, or give --peers")
        else:
            found[name] = command
    return found


def _try(command: Sequence[object]) -> None:
    subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True, env=harness.ENVIRONMENT)


def with_daemon(store: Path, tier: str, run: list[object], count: int) -> Found:
    """The same commands, served."""
    with daemon(store, tier):
        print(f"\nwith a daemon, {tier}")
        contestants = {BARE: [sys.executable, "-c", "pass"], STATUS: [KENSHO, "--store", store, "--json", "status"]}
        found = rounds(contestants | {RUN: run}, count)
        print_table(found)
        return found


@contextmanager
def daemon(store: Path, tier: str) -> Iterator[None]:
    command = [KENSHO, "--store", store, "serve", "--port", "0", "--tier", tier]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen([str(word) for word in command], env=harness.ENVIRONMENT, stdout=log, stderr=log)
        try:
            deadline_s = time.monotonic() + MAX_WAIT_S
            while not (store / "daemon.sock").exists():
                if server.poll() is not None or time.monotonic() > deadline_s:
                    log.seek(0)
                    sys.exit(f"kensho serve does not start: {log.read().decode(errors='replace')}")
                time.sleep(0.02)
            harness.run([KENSHO, "--store", store, "--quiet", "warm", "m"])
            yield
        finally:
            server.terminate()
            server.wait()


# --- measuring ---


def rounds(contestants: Mapping[str, list[object]], count: int) -> Found:
    """Every contestant once a round, after one round that does not count; who is first changes."""
    names = list(contestants)
    found: dict[str, list[Start]] = {name: [] for name in names}
    for number in range(count + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            result = start(contestants[name])
            if number:
                found[name].append(result)
    return found


def start(command: Sequence[object]) -> Start:
    words = [str(word) for word in command]
    read_end, write_end = os.pipe()
    began_s = time.perf_counter()
    child = subprocess.Popen(
        words, env=harness.ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    os.read(read_end, 1)
    first_s = time.perf_counter() - began_s
    cpu_first_ms = sum(cpu_ms(pid) for pid in tree(child.pid))
    while os.read(read_end, 65536):
        pass
    os.close(read_end)
    assert child.stderr
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    end_s = time.perf_counter() - began_s
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(words)} ended with {child.returncode}: {errors.decode(errors='replace')[-2000:]}")
    return Start(first_s * 1e3, cpu_first_ms, end_s * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3)


def tree(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += tree(int(child))
    return found


def cpu_ms(pid: int) -> float:
    spent = 0
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            spent += int((task / "schedstat").read_text().split()[0])
    return spent / 1e6


# --- telling ---


def middle(runs: Sequence[Start], what: Callable[[Start], float]) -> float:
    return median(what(run) for run in runs)


def print_table(found: Found) -> None:
    width = max(map(len, found))
    bare = middle(found[BARE], lambda run: run.end)
    print(f"{'':<{width}}   n  first ms    (min - max)   cpu ms   end ms  cpu ms   x bare python, load {load()}")
    for name, runs in found.items():
        firsts = [run.first for run in runs]
        end = middle(runs, lambda run: run.end)
        print(
            f"{name:<{width}}  {len(runs):2}  {median(firsts):8.1f}  {min(firsts):6.1f} -{max(firsts):6.1f}  "
            f"{middle(runs, lambda run: run.cpu_first):7.1f}  {end:7.1f} {middle(runs, lambda run: run.cpu_end):7.1f}  "
            f"{end / bare:6.2f}"
        )


def print_bars(alone: Found, served: Mapping[str, Found]) -> None:
    print(f"\nload {load()}")
    own, bare = alone[RUN], middle(alone[BARE], lambda run: run.end)
    first = middle(own, lambda run: run.first)
    harness.print_bar("process start to first token, no daemon", first, 200, "ms")
    harness.print_bar("  CPU of all processes, to the first token", middle(own, lambda run: run.cpu_first), 230, "ms")
    for name in PEERS:
        if name in alone:
            ratio = middle(alone[name], lambda run: run.first) / first
            harness.print_bar(f"  times faster than {name}", ratio, 2, "x", at_least=True)
    for tier, limit in (("packed", 40.0), ("mapped", 60.0)):
        value = middle(served[tier][RUN], lambda run: run.first)
        harness.print_bar(f"with a daemon, client start to first token, {tier}", value, limit, "ms")
    help_ms = middle(alone[HELP], lambda run: run.end)
    harness.print_bar("kensho --help", help_ms, 60, "ms")
    harness.print_bar("  against bare python", help_ms / bare, 4, "x")
    status_ms = middle(served["packed"][STATUS], lambda run: run.end)
    served_bare = middle(served["packed"][BARE], lambda run: run.end)
    harness.print_bar("kensho status --json with a daemon", status_ms, 40, "ms")
    harness.print_bar("  against bare python", status_ms / served_bare, 3, "x")


def print_timeline(store: Path) -> None:
    """One more run, watched: who does what when."""
    print("\nwhere the time goes (one run, watched): ms since its start; CPU ms of the process")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "notes"
        program = [sys.executable, ROOT / "bench" / "start_timeline.py", out, time.monotonic_ns()]
        harness.run([*program, "--store", store, "--quiet", "run", "m", PROMPT, "--max-tokens", "1"])
        for line in out.read_text().splitlines():
            wall, cpu, process, what = line.split(" ", 3)
            indent = "" if process == "kensho" else " " * 36
            print(f"{float(wall):7.1f} {float(cpu):7.1f}  {indent}{what}")
    answer = subprocess.run(
        [str(KENSHO), "--store", str(store), "--json", "run", "m", PROMPT, "--max-tokens", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    summary = json.loads(answer.stdout.splitlines()[-1])
    print(f"answered by {summary['engine']}, {summary['tier']} tier, graph from {summary['load_source']}")


def load() -> str:
    return ", ".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    main()
