"""What commands cost before they do anything: wall and CPU of whole processes, and where their imports go.

`kensho run` answers from the demonstration model that is shipped inside the package; its graph is compiled beforehand.
"""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import harness
import kensho
from harness import KENSHO

TOP = 12
PROMPT = "What is Kensho?"


def main() -> None:
    args = harness.arguments(__doc__ or "", rounds=11)
    scratch: Path = harness.fresh(args.scratch / "startup")
    harness.print_machine("onnxruntime", "numpy")
    store = _store_with_demo_model(scratch)
    commands: dict[str, list[object]] = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "kensho --help": [KENSHO, "--help"],
        "kensho status --json": [KENSHO, "--store", store, "status", "--json"],
        "kensho verify": [KENSHO, "--store", store, "--quiet", "verify"],
        "kensho run (graph compiled)": [KENSHO, "--store", store, "--quiet", "run", "demo", PROMPT],
    }
    harness.run(commands["kensho run (graph compiled)"])  # compiles
    found = harness.interleave(
        {name: lambda command=command: harness.run(command) for name, command in commands.items()}, args.rounds
    )
    harness.print_table(found, against=None)
    for name, command in list(commands.items())[1:]:
        _print_imports(name, command)


def _store_with_demo_model(scratch: Path) -> Path:
    """Published and pulled as a user would, from a folder."""
    model, keys, repo, store = (
        Path(kensho.__file__).parent / "demo" / "model" / "v1",
        *(scratch / name for name in ("keys", "repo", "store")),
    )
    harness.run([KENSHO, "keygen", keys])
    harness.run([KENSHO, "publish", "--model", "demo", "--version", "1.0", "--to", repo, "--keys", keys, model])
    root = repo / "metadata" / "1.root.json"
    harness.run([KENSHO, "--store", store, "init", "--from", f"file://{repo}", "--root", root])
    harness.run([KENSHO, "--store", store, "--quiet", "pull", "demo"])
    return store


def _print_imports(name: str, command: list[object]) -> None:
    """Self time of imports by top-level package, of one run with -X importtime (which slows imports down)."""
    words = [sys.executable, "-X", "importtime", *(str(word) for word in command)]
    text = subprocess.run(words, capture_output=True, text=True, check=True, env=harness.ENVIRONMENT).stderr
    times: Counter[str] = Counter()
    count = 0
    for line in re.finditer(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", text, re.MULTILINE):
        times[line[2].partition(".")[0]] += int(line[1])
        count += 1
    parts = ", ".join(f"{package} {us / 1e3:.1f}" for package, us in times.most_common(TOP))
    print(f"\nimports of {name}: {count} modules, {sum(times.values()) / 1e3:.0f} ms with the profiler on\n  {parts}")


if __name__ == "__main__":
    main()
