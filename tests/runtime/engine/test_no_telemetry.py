"""ONNX Runtime's own telemetry: a thread, a device id in the home folder, and an upload in native code. None of it."""

import subprocess
import sys
from pathlib import Path

import pytest

from kensho.runtime.cache.loaded_graph import LoadedGraph

pytestmark = pytest.mark.real

RUN = """
import os, sys
from pathlib import Path
from kensho.runtime.engine.session import Session
threads = len(os.listdir("/proc/self/task"))
session = Session.load(Path(sys.argv[1]), Path("."), tier="mapped", threads=1)
session.append([1, 2])
print(threads, len(os.listdir("/proc/self/task")))
"""


def test_a_process_that_runs_a_model_reports_to_nobody(graph: LoadedGraph, tmp_path: Path) -> None:
    # CI=true would suppress it too: the environment has nothing of ours.
    env = {"HOME": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, graph.graph_folder],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1 1\n", "")
    assert list(tmp_path.iterdir()) == []
