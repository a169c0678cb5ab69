"""What lies between `kensho run` and its first token: modules are counted, and some must never be among them."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kensho.cli.main import main
from kensho.demo.stage import embedded_model

pytestmark = pytest.mark.real

HEAVY = frozenset(
    [
        *("argparse", "attr", "click", "cryptography", "dataclasses", "email", "http", "importlib.metadata", "jinja2"),
        *(
            "msgspec",
            "multiprocessing",
            "onnx",
            "psutil",
            "pyfastcdc",
            "random",
            "requests",
            "rich",
            "securesystemslib",
        ),
        *(
            "shutil",
            "ssl",
            "starlette",
            "tempfile",
            "tokenizers",
            "tomllib",
            "tuf",
            "uuid",
            "urllib.request",
            "urllib3",
        ),
        *("uvicorn", "xml", "zipfile", "zstandard"),
    ]
)
"""Each costs 1 to 300 ms, and none has a part in a first token."""
ENGINE = frozenset({"numpy", "onnxruntime"})
PARENT_BUDGET, HOST_BUDGET, HELP_BUDGET, STATUS_BUDGET = 326, 260, 45, 150
"""Modules. 292, 242, 40 and 139 when this was written (Python 3.11); ten more are 1 to 2 ms."""

PROGRAM = """
import os, sys
out, main, leave = sys.argv[1], os.getpid(), os._exit
def told(code):
    name = "kensho" if os.getpid() == main else "host"
    with open(f"{out}/{name}", "w") as file:
        file.write("\\n".join(sys.modules))
    leave(code)
os._exit = told
sys.argv = ["kensho", *sys.argv[2:]]
from kensho.cli.entry import main as run
code = run()
sys.stdout.flush()
told(code)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the demonstration model, pulled and compiled."""
    folder = tmp_path_factory.mktemp("budget")
    store, repository, keys = folder / "store", folder / "repository", folder / "keys"
    source = ["--model", "demo", "--version", "1.0", "--to", str(repository), "--keys", str(keys)]
    for command in (
        ["keygen", str(keys)],
        ["publish", str(embedded_model() / "v1"), *source],
        ["init", "--from", f"file://{repository}", "--root", str(repository / "metadata" / "1.root.json")],
        ["pull", "demo"],
        ["run", "demo", "Hello", "--max-tokens", "1"],
    ):
        assert main(["--quiet", "--store", str(store), *command]) == 0
    return store


def modules(out: Path, *argv: str) -> tuple[str, Mapping[str, frozenset[str]]]:
    """What the command says, and the modules of each of its processes at its end, by name of the process."""
    command = [sys.executable, "-c", PROGRAM, str(out), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, {path.name: frozenset(path.read_text().split()) for path in out.iterdir()}


def test_an_answer_imports_nothing_that_it_does_not_need(store: Path, tmp_path: Path) -> None:
    said, found = modules(tmp_path, "--json", "--store", str(store), "run", "demo", "Hello", "--max-tokens", "1")
    summary = json.loads(said.splitlines()[-1])
    assert summary["load_source"] == "disk", "the graph is there: nothing had to be made"
    assert found.keys() == {"kensho", "host"}, "one process forked from the other"
    assert found["kensho"] & (HEAVY | ENGINE) == set()
    assert found["host"] & HEAVY == set()
    assert found["host"] >= ENGINE
    assert len(found["kensho"]) <= PARENT_BUDGET
    assert len(found["host"]) <= HOST_BUDGET


def test_a_status_needs_no_event_loop(store: Path, tmp_path: Path) -> None:
    _, found = modules(tmp_path, "--json", "--store", str(store), "status")
    assert found["kensho"] & (HEAVY | ENGINE | {"asyncio"}) == set()
    assert len(found["kensho"]) <= STATUS_BUDGET


def test_help_needs_next_to_nothing(tmp_path: Path) -> None:
    _, found = modules(tmp_path, "--help")
    assert found["kensho"] & (HEAVY | ENGINE | {"asyncio", "json", "pathlib", "re", "typing"}) == set()
    assert len(found["kensho"]) <= HELP_BUDGET
