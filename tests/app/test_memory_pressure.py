"""Memory is given back under the real limit of a real cgroup: a program in a container, where free memory says nothing.

Needs root and a writable cgroup file system, of either version.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kensho.cli.main import main
from kensho.delivery.keys import keygen
from kensho.demo.stage import embedded_model

pytestmark = pytest.mark.real

LIMIT_BYTES = 700 << 20
GROUPS = Path("/sys/fs/cgroup")

PROGRAM = """
import asyncio, json, os, sys
from pathlib import Path
group, store, question = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(group / "cgroup.procs").write_text(str(os.getpid()))
from kensho.app import Kensho, serving, tiers
from kensho.base.clock import SystemClock
from kensho.base.events import TierChanged
from kensho.runtime.system.memory import read_memory
from kensho.settings import load_settings
serving.LOOK_EVERY_S, tiers.PACK_TOKENS = 0.1, 10

async def scene():
    said, changed = [], asyncio.Queue()
    said.append(read_memory())
    settings = load_settings({"store": store, "standby": "on_demand"})
    async with Kensho(settings, clock=SystemClock()) as app:
        app.listen(lambda event: changed.put_nowait(event.to_tier) if isinstance(event, TierChanged) else None)
        await app.compile("demo")
        text = "".join([token.text async for token in app.generate("demo", question)])
        async with asyncio.timeout(60):
            said.append(await changed.get())
        hog = bytearray(max(0, read_memory() - tiers.RESERVE_BYTES + (16 << 20)))
        hog[:: 4096] = b"x" * len(hog[:: 4096])
        said.append(read_memory() < tiers.RESERVE_BYTES)
        async with asyncio.timeout(60):
            said.append(await changed.get())
        del hog  # while it is there, the idle model is closed too, and no engine may be started
        again = app.generate("demo", question)
        said.append("".join([token.text async for token in again]) == text)
        said.append(again.record.tier)
    print(json.dumps(said))

asyncio.run(scene())
"""


def make_group() -> Path | None:
    """A memory cgroup with LIMIT_BYTES; None where that is not for us to make."""
    for parent, limit in ((GROUPS / "memory", "memory.limit_in_bytes"), (GROUPS, "memory.max")):
        group = parent / f"kensho-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            if limit == "memory.max":
                (parent / "cgroup.subtree_control").write_text("+memory")
            group.mkdir()
            if (group / limit).exists():
                (group / limit).write_text(str(LIMIT_BYTES))
                return group
            group.rmdir()
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    made = make_group()
    if made is None:
        pytest.skip("this machine lets us make no memory cgroup")
    yield made
    made.rmdir()  # only an empty one can be removed: no process was left


def test_the_packed_copy_is_given_back_when_the_cgroups_memory_gets_short(group: Path, tmp_path: Path) -> None:
    keygen(tmp_path / "keys")
    repository, store = tmp_path / "repository", tmp_path / "store"
    publish = ["publish", str(embedded_model() / "v1"), "--model", "demo", "--version", "1.0.0", "--quiet"]
    assert main([*publish, "--to", str(repository), "--keys", str(tmp_path / "keys")]) == 0
    root = repository / "metadata" / "1.root.json"
    assert main(["--store", str(store), "init", "--from", f"file://{repository}", "--root", str(root)]) == 0
    assert main(["--store", str(store), "pull", "demo"]) == 0
    question = "What is a chunk?"
    command = [sys.executable, "-c", PROGRAM, str(group), str(store), question]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    room, first, is_short, second, is_same, tier = json.loads(done.stdout.splitlines()[-1])
    assert 0 < room <= LIMIT_BYTES
    assert (first, is_short, second) == ("packed", True, "mapped")
    assert (is_same, tier) == (True, "mapped")
