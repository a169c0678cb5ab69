"""Mutation testing: does a test fail for each small change of the code that decides? By mutmut, in a copy.

    python bench/mutate.py breaker [admission ...]      # or `make mutate`

mutmut (3.8.1) is not part of the development environment: it is installed into build/mutate/tools. Each area is copied
to build/mutate/AREA, because mutmut writes the mutated source beside the tests that it runs. It changes one operator,
number, string, argument or default at a time. A mutant that no test notices is a survivor; docs/mutation.md says of
each why it is one. Exit code 1 if less than 95 % of an area's mutants are noticed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutate"
TOOL = "mutmut==3.8.1"
BAR = 0.95

AREAS = {
    "breaker": {
        "modules": ["breaker", "breaker_moves", "breaker_rates", "gate"],
        "tests": [
            *("test_breaker.py", "test_breaker_model.py", "test_breaker_waits.py", "test_breaker_words.py"),
            *("test_gate.py", "test_circuit.py", "test_saved_circuit.py"),
        ],
        # those that change the source themselves, and those that take long (shrinking!) and find no more
        "without": "not TestCompared and not catches_the_mutant and not threads and not hundred_thousand",
    },
    "admission": {
        "modules": ["admission", "admission_settings", "pressure", "estimate"],
        "tests": [
            *("test_admission.py", "test_admission_engines.py", "test_admission_levels.py", "test_admission_model.py"),
            *("test_admission_settings.py", "test_estimate.py"),
        ],
        # the walk of two thousand steps finds what Hypothesis and the simulations find, and sooner
        "without": "not catches_the_mutant and not hundred_thousand and not SideBySide and not exactly_one_outcome"
        " and not under_overload and not slow_engine_is_used and not million",
    },
}
"""By area: the modules of kensho.resilience that are mutated, and the tests that must notice."""


def prepare(area: str) -> Path:
    spec, folder = AREAS[area], WORK / area
    shutil.rmtree(folder, ignore_errors=True)
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc", "demo")
    shutil.copytree(ROOT / "src", folder / "src", ignore=skipped)
    shutil.copytree(ROOT / "tests" / "resilience", folder / "tests" / "resilience", ignore=skipped)
    modules = [f"src/kensho/resilience/{module}.py" for module in spec["modules"]]
    tests = [f"tests/resilience/{test}" for test in spec["tests"]]
    pytest = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-k", spec["without"], "-W", "ignore"]
    (folder / "pyproject.toml").write_text(
        "[tool.mutmut]\n"
        'source_paths = ["src"]\n'
        f"only_mutate = {json.dumps(modules)}\n"
        f"pytest_add_cli_args = {json.dumps(pytest)}\n"
        f"pytest_add_cli_args_test_selection = {json.dumps(tests)}\n"
        "timeout_constant = 20.0\n"
        "use_git_change_detection = false\n"
        "[tool.pytest.ini_options]\n"
        'markers = ["real: takes long"]\n'
    )
    return folder


def run(area: str, children: int) -> bool:
    folder = prepare(area)
    env = {**os.environ, "PYTHONPATH": str(WORK / "tools")}

    def mutmut(*words: str, output: int | IO[str] = subprocess.PIPE) -> str:
        command = [sys.executable, "-m", "mutmut", *words]
        done = subprocess.run(command, cwd=folder, env=env, check=False, stdout=output, stderr=output, text=True)
        return done.stdout or ""

    with (folder / "mutmut.log").open("w") as log:
        mutmut("run", "--max-children", str(children), output=log)
    mutmut("export-cicd-stats")
    stats = json.loads((folder / "mutants" / "mutmut-cicd-stats.json").read_text())
    noticed = sum(stats.get(kind, 0) for kind in ("killed", "timeout", "segfault"))
    share = noticed / max(1, stats["total"])
    print(f"{area}: {noticed} of {stats['total']} mutants noticed by mutmut 3.8.1, score {share:.1%} (bar {BAR:.0%})")
    survivors = [line.strip().partition(":")[0] for line in mutmut("results").splitlines() if line.strip()]
    for name in survivors[:200]:
        shown = mutmut("show", name).splitlines()
        changed = [text for text in shown if text[:1] in "+-" and text[:3] not in {"+++", "---"}]
        print(f"  {name.removeprefix('kensho.resilience.')}\n    " + "\n    ".join(changed))
    return share >= BAR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("areas", nargs="*", default=list(AREAS), choices=[*AREAS, []])
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    if not (WORK / "tools" / "mutmut").exists():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(WORK / "tools"), TOOL]
        subprocess.run(install, check=True)
    sys.exit(not all([run(area, args.children) for area in args.areas]))


if __name__ == "__main__":
    main()
