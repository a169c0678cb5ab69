"""Rows 12, 13, 16 and 17 of `test_cache_failures`: on real small disks, and under real engines."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from missing import MakeCache, reason

from kensho.base.clock import SystemClock
from kensho.base.errors import EngineCrashed
from kensho.base.events import GraphCacheUnavailable
from kensho.base.inference import Sampling
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.host import EngineHost

pytestmark = pytest.mark.store


def full_disk_program(model_folder: Path, prepare: str) -> str:
    """Load a model twice with its graph cache on a disk of its own, in a mount namespace of its own."""
    program = f"""
import asyncio, sys
from pathlib import Path
from secrets import token_hex
from kensho.base.clock import SystemClock
from kensho.base.ids import digest_of
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.loader import ModelLoader
from kensho.runtime.system.machine import read_machine
root, model = Path(sys.argv[1]), Path({str(model_folder)!r})
said = []
token = lambda: token_hex(4)
clock = SystemClock()
cache = GraphCache(root / "small/graphs", limit_bytes=1 << 30, boot="b", clock=clock, token=token, emit=said.append)
loader = ModelLoader(cache=cache,
    compiler=Compiler(env={{}}, stall_s=60, emit=lambda event: None), scratch=root / "scratch", token=token,
    machine=read_machine(), clock=SystemClock(), emit=said.append, max_context=256, threads=1)
digests = {{path.name: digest_of(path.read_bytes()) for path in model.iterdir()}}
async def twice():
    first = await loader.load("m", "1", model, digests, tier="mapped")
    second = await loader.load("m", "1", model, digests, tier="mapped")
    return [first.source, second.source, str(first.graph_folder.relative_to(root).parts[0])]
sources = asyncio.run(twice())
left = [str(p.relative_to(root)) for p in root.rglob("weights.bin") if "scratch" not in p.parts]
loader.close()
print("\\n".join([*sources, str(left), str(list((root / "scratch").iterdir())), *[e.name for e in said]]))
"""
    return f"{prepare} && exec {sys.executable} -c '{program.replace(chr(39), chr(34))}' \"$0\""


def run_on_a_disk(root: Path, model_folder: Path, prepare: str) -> list[str]:
    (root / "small").mkdir()
    (root / "scratch").mkdir()
    script = full_disk_program(model_folder, prepare)
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.real
@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("size", ["64k", "400k"])
def test_12_a_full_disk_costs_the_cache_and_no_answer(tmp_path: Path, tiny_model: Path, size: str) -> None:
    mount = f'mount -t tmpfs -o size={size} tmpfs "$0/small" && mkdir "$0/small/graphs"'
    first, second, place, left, scratch, *said = run_on_a_disk(tmp_path, tiny_model, mount)
    assert (first, second, place) == ("compile", "memory", "scratch")
    assert (left, scratch) == ("[]", "[]")
    assert said.count(GraphCacheUnavailable.name) == 1


@pytest.mark.real
@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
@pytest.mark.parametrize("has_folder", [True, False])
def test_13_a_read_only_disk_costs_the_cache_and_no_answer(tmp_path: Path, tiny_model: Path, has_folder: bool) -> None:
    mount = 'mount -t tmpfs -o size=9m tmpfs "$0/small"'
    mount += (' && mkdir "$0/small/graphs"' if has_folder else "") + ' && mount -o remount,ro "$0/small"'
    first, second, place, _, scratch, *said = run_on_a_disk(tmp_path, tiny_model, mount)
    assert (first, second, place, scratch) == ("compile", "memory", "scratch", "[]")
    assert said.count(GraphCacheUnavailable.name) == 1


def host_on(graph: LoadedGraph) -> EngineHost:
    return EngineHost(
        "primary",
        graph,
        clock=SystemClock(),
        emit=lambda _: None,
        env={},
        threads=1,
        max_context=64,
        start_s=30,
        inactivity_s=20,
    )


async def answer(host: EngineHost) -> list[int]:
    return [token async for token in host.generate((2, 30, 31), (), Sampling(max_tokens=8))]


@pytest.mark.real
def test_16_a_file_cut_short_under_a_live_mapping_costs_a_request_and_is_made_anew(
    compiled: LoadedGraph, make_cache: MakeCache
) -> None:
    async def scene() -> None:
        host = host_on(compiled)
        await host.start()
        assert len(await answer(host)) == 8
        os.truncate(compiled.graph_folder / "weights.bin", 0)
        with pytest.raises(EngineCrashed, match="SIGBUS"):
            await answer(host)
        await host.close()

    asyncio.run(scene())
    assert reason(make_cache().lookup(compiled.key)) == "damaged"


@pytest.mark.real
def test_17_an_entry_that_is_removed_while_it_is_mapped_goes_on_answering(
    compiled: LoadedGraph, make_cache: MakeCache
) -> None:
    async def scene() -> None:
        host = host_on(compiled)
        await host.start()
        before = await answer(host)
        shutil.rmtree(compiled.graph_folder)
        assert await answer(host) == before
        await host.close()

    asyncio.run(scene())
    assert reason(make_cache().lookup(compiled.key)) == "absent"
