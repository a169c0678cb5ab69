"""Kensho beside llama.cpp, OpenVINO and a bare ONNX Runtime: loading, first tokens, decoding, memory, cold start.

    make bench-peers    # once: the peers, in build/peers/ (llama.cpp is built, which takes minutes)
    python bench/runtime_peers.py [--rounds 5] [--work FOLDER] [--peers PYTHON]

The model has the real shape of Gemma 3 270M and random weights, the same for all: Kensho's int8 graph, q8_0 for
llama.cpp, int8 by output channel for OpenVINO (its compiled-model cache filled before) and for ONNX Runtime (the usual
dynamic graph, default options). Token ids in, logits out: tokenizers are in no figure, but for llama.cpp's vocabulary,
which its usual file loads; a file without one is measured too. A context of 2048 tokens.

Each measurement is a process of its own, which has imported its engine ("resident"); engines take turns within a round
and who is first changes. Medians. The page cache is warm, except where a row says cold: then the engine's files were
dropped from it and mincore says they are gone. What is absent is said and left out.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import runtime_compile
from peers.engines import NAMES, files_of
from peers.page_cache import cached_share, drop, warm

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).with_name("peers")
LLAMA, BARE_LLAMA, OPENVINO, ORT = "llama.cpp q8_0", "llama.cpp q8_0, no vocabulary", *NAMES[-2:]
MAPPED, PACKED = "kensho mapped", "kensho packed"
MEASURED = ("cold 2", "loads 1", "loads 2", "steady 1", "steady 2", "second 1")
"""What is measured, and the number of threads."""
COLD = 0.01
"""Part of an engine's files that may be in memory before a cold start."""
Numbers = dict[str, float]
Runs = dict[str, list[Numbers]]


def main() -> None:
    args = arguments(__doc__)
    python = present(args.work, args.peers)
    prepare(args.work, python)
    names = list(python)
    print_machine(python)
    found: Runs = {name: [] for name in names}
    own: Runs = {"compile": [], "raw": []}
    for number in range(args.rounds):
        own["compile"].append(runtime_compile.child("compile", args.work / "270m", fresh(args.work / "compiled")))
        own["raw"].append(runtime_compile.child("raw", args.work / "270m", fresh(args.work / "built")))
        of_round: dict[str, Numbers] = {name: {} for name in names}
        for what in MEASURED:  # the same of all engines within seconds of each other: the machine changes
            for name in names[number % len(names) :] + names[: number % len(names)]:
                of_round[name] |= measure(what, name, args.work, python[name])
        for name in names:
            found[name].append(of_round[name])
        print(f"round {number + 1} of {args.rounds}: load average {os.getloadavg()[0]:.1f}", flush=True)
    print_errors(args.work, python)
    print_all(found)
    print_bars(found, own)


def arguments(doc: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "bench" / "runtime", help="the models, kept")
    parser.add_argument("--peers", type=Path, default=ROOT / "build" / "peers" / "bin" / "python")
    args = parser.parse_args()
    args.work = args.work.absolute()
    return args


def present(work: Path, peers: Path) -> dict[str, Path]:
    """The interpreter of each engine that can be imported; the others are named once."""
    python: dict[str, Path] = {}
    for name in NAMES:
        own = Path(sys.executable) if name.startswith(("kensho", "onnxruntime")) else peers
        if own.exists() and start(own, "has", name, work, 1).wait() == 0:
            python[name] = own
        else:
            print(f"absent: {name} (run `make bench-peers`, or give --peers)")
    return python


def prepare(work: Path, python: Mapping[str, Path]) -> None:
    """Each engine's own file of the model, made once; all of them read into the page cache."""
    model = runtime_compile.prepare(work)
    makers: dict[Path, tuple[str, Sequence[object]]] = {
        work / "graph": (MAPPED, [sys.executable, "bench/runtime_compile.py", "--part", "compile", model]),
        work / "raw": (MAPPED, [sys.executable, "bench/runtime_compile.py", "--part", "raw", model]),
        work / "model-q8_0.gguf": (LLAMA, [python.get(LLAMA), "bench/peers/write_gguf.py", model]),
        work / "bare-q8_0.gguf": (LLAMA, [python.get(LLAMA), "bench/peers/write_gguf.py", "--no-vocab", model]),
        work / "openvino": (OPENVINO, [python.get(OPENVINO), "bench/peers/write_openvino.py", model]),
        work / "onnx": (ORT, [sys.executable, "bench/peers/write_onnx.py", model]),
    }
    for out, (name, command) in makers.items():
        is_ours = out.name in ("graph", "raw")  # made by the code that is measured: never an old one
        if name not in python or (out.exists() and not is_ours):
            continue
        if is_ours:
            fresh(out)
        subprocess.run([*map(str, command), str(out)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    if OPENVINO in python:
        for threads in (1, 2):  # the number of threads is in its key
            run("first", OPENVINO, work, python[OPENVINO], threads)
    os.sync()


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


# --- processes ---


def environment(name: str) -> dict[str, str]:
    """Of an engine host for Kensho's tiers (see `machine.ENGINE_ENVIRONMENT`), the usual one for the others."""
    from kensho.runtime.system.machine import ENGINE_ENVIRONMENT

    return {**os.environ, **(ENGINE_ENVIRONMENT if name.startswith("kensho ") else {"OPENBLAS_NUM_THREADS": "1"})}


def start(python: Path, part: str, name: str, work: Path, threads: int) -> "subprocess.Popen[str]":
    command = [python, PEERS / "child.py", part, name, work, threads]
    return subprocess.Popen(
        list(map(str, command)),
        env=environment(name),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if part == "has" else None,
        text=True,
    )


def run(part: str, name: str, work: Path, python: Path, threads: int) -> Numbers:
    process = start(python, part, name, work, threads)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{name}: {part} ended with {process.returncode}")
    numbers: Numbers = json.loads(output)
    return numbers


def measure(what: str, name: str, work: Path, python: Path) -> Numbers:
    """One measurement of one engine; keys end in the number of threads."""
    files = files_of(name, work)
    part, _, threads = what.partition(" ")
    if part == "cold":
        drop(files)
        share = cached_share(files)
        if share > COLD:
            sys.exit(f"{name}: {share:.0%} of its files stay in the page cache; no cold start can be measured here")
        cold = run("first", name, work, python, int(threads))
        warm(files)
        return {f"cold {key}": value for key, value in cold.items()}
    if part == "second":
        return second_process(name, work, python)
    if part == "steady" and name == BARE_LLAMA:
        return {}  # only its loading differs
    return {f"{key} {threads}": value for key, value in run(part, name, work, python, int(threads)).items()}


def second_process(name: str, work: Path, python: Path) -> Numbers:
    """MB that a second process with the same model adds: proportional shares, so what both map counts once."""
    holders = []
    totals = []
    try:
        for _ in range(2):
            holders.append(start(python, "hold", name, work, 1))
            assert holders[-1].stdout
            if holders[-1].stdout.readline() != "ready\n":
                sys.exit(f"{name}: it does not hold the model")
            totals.append(sum(share_mb(holder.pid) for holder in holders))
    finally:
        for holder in holders:
            holder.communicate()
    return {"second process": totals[1] - totals[0]}


def share_mb(pid: int) -> float:
    found = re.search(r"\nPss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0


# --- tables ---


def print_machine(python: Mapping[str, Path]) -> None:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    print(f"machine: {model[1] if model else '?'}, {os.cpu_count()} cores, Linux {platform.release()}, load {load}")
    words = []
    for peer in dict.fromkeys(python.values()):
        names = ["onnxruntime", "numpy"] if peer == Path(sys.executable) else ["llama_cpp_python", "openvino"]
        code = f"import importlib.metadata as m; print(*(f'{{n}} {{m.version(n)}},' for n in {names}), end=' ')"
        words.append(subprocess.run([peer, "-c", code], capture_output=True, text=True, check=True).stdout)
    print(f"versions: {''.join(words)}python {platform.python_version()}")


def print_errors(work: Path, python: Mapping[str, Path]) -> None:
    """That they are all the same model: the logits of a prompt of 16 beside the exact ones."""
    import numpy as np

    logits = {}
    for name, own in python.items():
        if name != BARE_LLAMA:
            values = np.array(run("answer", name, work, own, 1)["logits"])
            logits[name] = values - values.mean()
    exact = logits["kensho raw"]
    print("\nrelative error of the logits against float32 (the same model in each form):")
    for name, values in logits.items():
        print(f"  {name:32}{np.linalg.norm(values - exact) / np.linalg.norm(exact):8.4f}")


COLUMNS: dict[str, Callable[[Numbers], float]] = {
    "load": lambda run: run["load cpu 1"],
    "+p16": lambda run: run["load+p16 cpu 1"],
    "+p128": lambda run: run["load+p128 cpu 1"],
    "+p512": lambda run: run["load+p512 cpu 1"],
    "load ms": lambda run: run["load wall 2"],
    "+p16 ms": lambda run: run["load+p16 wall 2"],
    "+p128 ms": lambda run: run["load+p128 wall 2"],
    "cold+p16": lambda run: run["cold load+p16 wall"],
    "p512": lambda run: run["p512 cpu 1"],
    "p512 ms": lambda run: run["p512 wall 2"],
    "token": lambda run: run["token cpu 1"],
    "token ms": lambda run: run["token wall 2"],
    "load MB": lambda run: run["load memory 1"],
    "2nd MB": lambda run: run["second process"],
}


def print_all(found: Runs) -> None:
    print("\nmedians; CPU ms with 1 thread, or wall ms with 2 threads where the column says ms; MB of RssAnon, Pss")
    print(f"{'':32}" + "".join(f"{column:>10}" for column in COLUMNS))
    for name, runs in found.items():
        cells = [f"{middle(runs, read):10.1f}" if has(runs, read) else f"{'-':>10}" for read in COLUMNS.values()]
        print(f"{name:32}" + "".join(cells))


def middle(runs: Sequence[Numbers], read: Callable[[Numbers], float]) -> float:
    return median(read(run) for run in runs)


def has(runs: Sequence[Numbers], read: Callable[[Numbers], float]) -> bool:
    try:
        return all(read(run) >= 0 for run in runs)
    except KeyError:
        return False


def print_bars(found: Runs, own: Runs) -> None:
    """Every row of issue "Runtime I", its bar and what was measured."""

    def value(name: str, column: str) -> float:
        return middle(found[name], COLUMNS[column])

    def all_of(name: str, column: str) -> list[float]:
        return [COLUMNS[column](run) for run in found[name]]

    def of_own(part: str, key: str) -> list[float]:
        return [run[key] for run in own[part]]

    print(
        "\nbars (PASS or MISS of the median; wall time is the machine's load as well, hence the best round beside it)"
    )
    at_most("raw: folder complete to first answer, s", of_own("raw", "wall_s"), 0.5)
    at_most("raw: the same with a new process, s", of_own("raw", "process_s"))
    at_most("first compile with its process, s", of_own("compile", "process_s"), 5)
    at_most("first compile with its process, CPU s", of_own("compile", "process_cpu_s"))
    at_most("first compile, own memory, MB", of_own("compile", "peak_mb"), 200)
    at_most("artefact, MB", of_own("compile", "artefact_mb"), 290)
    at_most("mapped: load, resident, CPU ms", all_of(MAPPED, "load"), 40)
    at_most("mapped: load, resident, wall ms", all_of(MAPPED, "load ms"))
    at_most("mapped: own memory of a load, MB", all_of(MAPPED, "load MB"), 40)
    at_most("mapped: load + first token, prompt of 16, wall ms, 2 threads", all_of(MAPPED, "+p16 ms"), 100)
    at_most("mapped: the same, CPU ms, 1 thread", all_of(MAPPED, "+p16"))
    at_most("mapped: load + first token, prompt of 128, wall ms, 2 threads", all_of(MAPPED, "+p128 ms"), 150)
    at_most("mapped: the same, CPU ms, 1 thread", all_of(MAPPED, "+p128"))
    at_most("mapped: a second process, MB more", all_of(MAPPED, "2nd MB"), 60)
    for peer in (LLAMA, BARE_LLAMA, OPENVINO, ORT):
        if peer not in found:
            print(f"      not compared with {peer}: it is absent")
            continue
        is_judge = peer == LLAMA
        for what, ours, column, bar in (
            ("load, CPU, 1 thread: mapped", MAPPED, "load", 5.0),
            ("cold page cache, load + first token: mapped", MAPPED, "cold+p16", 2.0),
            ("load + first token, prompt of 128, CPU: mapped", MAPPED, "+p128", None),
            ("one token, CPU, 1 thread: mapped", MAPPED, "token", 0.8),
            ("one token, CPU, 1 thread: packed", PACKED, "token", 1.1),
            ("one token, wall, 2 threads: mapped", MAPPED, "token ms", 0.8),
            ("one token, wall, 2 threads: packed", PACKED, "token ms", 1.1),
            ("prompt of 512, CPU, 1 thread: packed", PACKED, "p512", 1.0),
            ("prompt of 512, wall, 2 threads: packed", PACKED, "p512 ms", 1.0),
        ):
            if has(found[peer], COLUMNS[column]):
                ratio = value(peer, column) / value(ours, column)
                best = min(all_of(peer, column)) / min(all_of(ours, column))
                verdict = "    " if not is_judge or bar is None else "PASS" if ratio >= bar else "MISS"
                limit = f" (bar: >= {bar:g} x)" if is_judge and bar is not None else ""
                print(f"{verdict}  {what}: {ratio:.2f} x {peer}, best rounds {best:.2f} x{limit}")


def at_most(what: str, measured: Sequence[float], bar: float | None = None) -> None:
    middle = median(measured)
    verdict = "    " if bar is None else "PASS" if middle <= bar else "MISS"
    limit = f" (bar: <= {bar:g})" if bar is not None else ""
    print(f"{verdict}  {what}: {middle:.4g}, best {min(measured):.4g}{limit}")


if __name__ == "__main__":
    main()
