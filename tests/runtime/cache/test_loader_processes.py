"""Loaders in several processes, with real compilers."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from loading import DIGESTS, World

from kensho.base.errors import ModelError
from kensho.base.events import CompileStage
from kensho.base.ids import Digest, digest_of
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.cache.loader import ModelLoader
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.system.machine import read_machine

pytestmark = pytest.mark.store

# --- with real compilers ---


def real_digests(folder: Path) -> dict[str, Digest]:
    return {path.name: digest_of(path.read_bytes()) for path in folder.iterdir()}


def real_loader(world: World, env: dict[str, str] | None = None) -> ModelLoader:
    return world.loader(Compiler(env=env or {}, stall_s=60, emit=world.events.append), read_machine())


PROCESS = """
import asyncio, json, sys
from pathlib import Path
from kensho.base.clock import SystemClock
from kensho.base.ids import digest_of
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.loader import ModelLoader
from kensho.runtime.system.machine import read_machine
from secrets import token_hex
root, model = Path(sys.argv[1]), Path(sys.argv[2])
env = {"PYTHONPATH": sys.argv[3]} if len(sys.argv) > 3 else {}
def say(event): print(event.name, flush=True)
def token(): return token_hex(4)
clock = SystemClock()
cache = GraphCache(root / "graphs", limit_bytes=1 << 30, boot="b", clock=clock, token=token, emit=say)
loader = ModelLoader(cache=cache,
    compiler=Compiler(env=env, stall_s=60, emit=say), scratch=root / "scratch", token=token, machine=read_machine(),
    clock=SystemClock(), emit=say, max_context=256, threads=1)
digests = {path.name: digest_of(path.read_bytes()) for path in model.iterdir()}
print(asyncio.run(loader.load("m", "1", model, digests, tier="mapped")).source, flush=True)
"""
SLOW = """
import kensho.runtime.compiling.stages as stages, time
real = stages.compile_model
def slow(*args, progress, **named):
    progress("parsing", 0, 1, "tensors")
    time.sleep({seconds})
    return real(*args, progress=progress, **named)
stages.compile_model = slow
"""


def process(world: World, model_folder: Path, slow_s: float = 0) -> "subprocess.Popen[str]":
    slow = world.root / "slow"
    slow.mkdir(exist_ok=True)
    (slow / "sitecustomize.py").write_text(SLOW.format(seconds=slow_s))
    command = [sys.executable, "-c", PROCESS, str(world.root), str(model_folder), str(slow)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.real
def test_two_processes_compile_a_key_once(world: World, tiny_model: Path) -> None:
    both = [process(world, tiny_model, slow_s=0.5) for _ in range(2)]
    said = sorted((each.communicate(timeout=60)[0].split() for each in both), key=lambda words: words[-1])
    assert [words[-1] for words in said] == ["compile", "disk"]
    assert "runtime.compile.stage" in said[1]  # who waits sees how far the other one is


@pytest.mark.parametrize("note", [b"", b"{}", b"[1,2,3,4]", b'["a",1,2]', b"[" * 9999, b"\xff"])
def test_a_broken_note_on_the_lock_of_a_key_says_nothing(world: World, note: bytes) -> None:
    key = world.load(world.loader()).key
    world.loader()
    shutil.rmtree(world.graphs / key)
    cache = world.cache(limit_bytes=1)
    lock = cache.compile_lock(key)
    assert lock
    lock.note(note)

    async def wait() -> LoadedGraph:
        waiting = asyncio.create_task(world.loader().load("m", "1", world.root / "model", DIGESTS, tier="mapped"))
        await asyncio.sleep(0.08)
        lock.close()
        return await waiting

    assert asyncio.run(wait()).source == "compile"
    assert CompileStage not in world.names()


@pytest.mark.real
def test_a_process_killed_while_compiling_frees_the_key_and_is_swept(world: World, tiny_model: Path) -> None:
    first = process(world, tiny_model, slow_s=60)
    assert first.stdout
    said = [first.stdout.readline() for _ in range(2)]
    assert said == ["runtime.graph.missed\n", "runtime.compile.stage\n"]
    (compiler,) = psutil.Process(first.pid).children()
    first.kill()
    first.communicate()
    gone, _ = psutil.wait_procs([compiler], timeout=5)
    assert gone
    assert len(list(world.graphs.glob(".tmp*"))) == 1
    assert process(world, tiny_model).communicate(timeout=60)[0].split()[-1] == "compile"
    assert list(world.graphs.glob(".tmp*")) == []


@pytest.mark.real
def test_cancelling_a_load_kills_the_compiler_and_frees_the_key(world: World, tiny_model: Path) -> None:
    slow = world.root / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW.format(seconds=60))
    stuck = real_loader(world, {"PYTHONPATH": str(slow)})
    digests = real_digests(tiny_model)

    async def cancel() -> None:
        task = asyncio.create_task(stuck.load("m", "1", tiny_model, digests, tier="mapped"))
        while CompileStage not in world.names():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert psutil.Process().children() == []
    assert list(world.graphs.glob(".tmp*")) == []
    assert asyncio.run(real_loader(world).load("m", "1", tiny_model, digests, tier="mapped")).source == "compile"


@pytest.mark.real
def test_a_real_model_is_loaded_from_every_place(world: World, model_copy: Path) -> None:
    digests = real_digests(model_copy)

    async def load(loader: ModelLoader, tier: str = "mapped") -> LoadedGraph:
        return await loader.load("m", "1", model_copy, digests, tier=tier)  # type: ignore[arg-type]

    loader = real_loader(world)
    assert asyncio.run(load(loader)).source == "compile"
    assert asyncio.run(load(loader)).source == "memory"
    assert asyncio.run(load(real_loader(world))).source == "disk"
    assert asyncio.run(load(loader, "raw")).source == "raw"
    shutil.rmtree(model_copy)
    assert asyncio.run(load(real_loader(world))).source == "disk"
    with pytest.raises(ModelError):
        asyncio.run(load(real_loader(world), "raw"))
