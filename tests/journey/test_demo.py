"""`kensho demo` as a user runs it: one process, its exit code, its report; and what a kill leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from kensho.demo.story import STEPS

pytestmark = pytest.mark.real


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "kensho", "--store", str(folder / "store"), *more, "demo"]


def test_every_step_of_the_story_holds(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, "--json"), capture_output=True, text=True, check=False, timeout=300)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    summary = lines[-1]
    assert (done.returncode, summary["ok"]) == (0, True), (summary, done.stderr)
    assert [step["name"] for step in summary["steps"]] == [name for name, _, _ in STEPS]
    assert all(step["ok"] for step in summary["steps"])
    assert {line["type"] for line in lines[:-1]} == {"progress"}
    log = [json.loads(line) for line in Path(summary["log"]).read_text().splitlines()]
    names = {record["event.name"] for record in log}
    assert {
        "kensho.delivery.release.published", "kensho.delivery.update.applied", "kensho.delivery.chunk.corrupt",
        "kensho.delivery.chunk.repaired", "kensho.delivery.update.rolled_back", "kensho.runtime.compile.finished",
        "kensho.runtime.graph.loaded", "kensho.runtime.engine.lost", "kensho.circuit.restarting",
        "kensho.circuit.probing", "kensho.circuit.closed", "kensho.resilience.stream.moved", "kensho.app.demo.step",
    } <= names  # fmt: skip


@pytest.mark.parametrize("delay_s", [0.3, 1.0, 2.0, 3.5, 6.0])
def test_a_demo_that_was_killed_leaves_nothing_that_the_next_one_trips_over(tmp_path: Path, delay_s: float) -> None:
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(delay_s)  # a real kill at a real moment
    family = psutil.Process(first.pid).children(recursive=True)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    if delay_s != 3.5:
        return  # one full run after a kill is enough for the clock's sake; the others prove that no process stays
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0, again.stdout + again.stderr
