import asyncio
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import psutil
import pytest

from kensho.base.errors import CompileFailed, Damaged, ModelError, NotEnoughSpace, StorageError, UnknownArchitecture
from kensho.base.events import (
    CompileFinished,
    CompileRetried,
    CompileStage,
    Event,
    GraphCacheUnavailable,
    GraphDropped,
    GraphMissed,
)
from kensho.base.ids import Digest, digest_of
from kensho.runtime.cache import graph_cache, graph_maker
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.graph_maker import GraphCompiler
from kensho.runtime.cache.header import GraphHeader
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.cache.loader import LoaderStats, ModelLoader
from kensho.runtime.cache.temp_folder import TempFolder
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.system.machine import Machine, read_machine
from kensho.testing.clock import VirtualClock

pytestmark = pytest.mark.store

MACHINE = Machine("x86_64", "linux", ("avx2",), "1.31.1")
DIGESTS = {
    "config.json": digest_of(b"c"),
    "tokenizer.json": digest_of(b"t"),
    "model.safetensors": digest_of(b"m"),
}


class Scripted:
    """A compiler that writes any bytes with a fitting header, or fails as told."""

    def __init__(self, write: Callable[..., GraphHeader]) -> None:
        self._write = write
        self.jobs: list[CompileJob] = []
        self.errors: list[Exception | None] = []
        self.after: Callable[[Path], object] = lambda _: None

    async def compile(self, job: CompileJob, on_stage: object = None) -> None:
        self.jobs.append(job)
        await asyncio.sleep(0)
        error = self.errors.pop(0) if self.errors else None
        if error:
            (Path(job.out_folder) / "half").write_bytes(b"x")
            raise error
        if job.key is None:
            (Path(job.out_folder) / "graph.onnx").write_bytes(b"raw")
        else:
            self._write(Path(job.out_folder), job.model, key=job.key)
        self.after(Path(job.out_folder))


class World:
    """One machine's disk, and as many loaders on it as there would be processes."""

    def __init__(self, root: Path, write: Callable[..., GraphHeader]) -> None:
        self.root = root
        self.graphs = root / "graphs"
        self.scratch = root / "scratch"
        self.events: list[Event] = []
        self.compiler = Scripted(write)
        self.clock = VirtualClock()
        self.boot = "first boot"
        self._numbers = count()

    def token(self) -> str:
        return f"t{next(self._numbers)}"

    def cache(self, limit_bytes: int = 1 << 30) -> GraphCache:
        return GraphCache(
            self.graphs,
            limit_bytes=limit_bytes,
            boot=self.boot,
            clock=self.clock,
            token=self.token,
            emit=self.events.append,
        )

    def loader(
        self, compiler: GraphCompiler | None = None, machine: Machine = MACHINE, limit_bytes: int = 1 << 30
    ) -> ModelLoader:
        return ModelLoader(
            cache=self.cache(limit_bytes),
            compiler=compiler or self.compiler,
            scratch=self.scratch,
            token=self.token,
            machine=machine,
            clock=self.clock,
            emit=self.events.append,
            max_context=2048,
            threads=1,
        )

    def load(self, loader: ModelLoader, model: str = "m", tier: str = "mapped") -> LoadedGraph:
        digests = {**DIGESTS, "model.safetensors": digest_of(model.encode())}
        return asyncio.run(loader.load(model, "1", self.root / "model", digests, tier=tier))  # type: ignore[arg-type]

    def find(self, loader: ModelLoader) -> LoadedGraph | None:
        return asyncio.run(loader.find("m", "1", self.root / "model", DIGESTS, tier="mapped"))

    def names(self) -> list[type[Event]]:
        """What was said, but for why a graph had to be made."""
        return [type(event) for event in self.events if not isinstance(event, GraphMissed)]


@pytest.fixture
def world(tmp_path: Path, write: Callable[..., GraphHeader]) -> World:
    return World(tmp_path, write)


def test_a_graph_is_compiled_once_then_found_in_memory_then_on_disk(world: World) -> None:
    loader = world.loader()
    graphs = [world.load(loader) for _ in range(3)]
    assert [graph.source for graph in graphs] == ["compile", "memory", "memory"]
    assert loader.stats == LoaderStats(memory=2, compile=1)
    assert world.load(world.loader()).source == "disk"
    assert len(world.compiler.jobs) == 1
    assert len({(graph.key, graph.graph_folder) for graph in graphs}) == 1
    assert world.names() == [CompileFinished]
    assert list(world.graphs.glob(".tmp*")) == []


def test_finding_never_compiles_and_does_not_wait_for_a_compile(world: World) -> None:
    loader = world.loader()
    assert world.find(loader) is None
    assert world.compiler.jobs == []

    async def while_compiling() -> tuple[LoadedGraph, LoadedGraph | None]:
        compiling = asyncio.create_task(loader.load("m", "1", world.root, DIGESTS, tier="mapped", is_background=True))
        while not world.compiler.jobs:  # noqa: ASYNC110  # a fake has no event of its own
            await asyncio.sleep(0)
        found = await loader.find("m", "1", world.root, DIGESTS, tier="mapped")
        return await compiling, found

    made, found = asyncio.run(while_compiling())
    assert (made.source, found) == ("compile", None)
    assert world.compiler.jobs[0].is_background
    again = world.find(loader)
    assert again
    assert (again.source, again.graph_folder) == ("memory", made.graph_folder)
    elsewhere = world.find(world.loader())
    assert elsewhere
    assert elsewhere.source == "disk"


def test_another_model_machine_or_engine_has_another_graph(world: World) -> None:
    loader = world.loader()
    keys = {world.load(loader, "m").key, world.load(loader, "n").key, world.load(loader, "m", "raw").key}
    for machine in (
        Machine("x86_64", "linux", (), "1.31.1"),
        Machine("x86_64", "linux", ("avx2",), "1.32"),
        Machine("aarch64", "linux", ("avx2",), "1.31.1"),
    ):
        keys.add(world.load(world.loader(machine=machine)).key)
    assert len(keys) == 6


def test_mapped_and_packed_share_one_file(world: World) -> None:
    loader = world.loader()
    assert world.load(loader, tier="mapped").graph_folder == world.load(loader, tier="packed").graph_folder
    assert loader.stats == LoaderStats(memory=1, compile=1)


@pytest.mark.parametrize("name", ["header.json", "graph.onnx", "weights.bin"])
def test_a_damaged_entry_is_dropped_and_compiled_again(world: World, name: str) -> None:
    path = world.load(world.loader()).graph_folder / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    graph = world.load(world.loader())
    assert graph.source == "compile"
    assert world.names() == [CompileFinished, GraphDropped, CompileFinished]
    assert world.load(world.loader()).source == "disk"


def test_the_three_graphs_released_last_stay_and_those_in_use_too(world: World) -> None:
    loader = world.loader()
    used = world.load(loader, "used")
    for model in "abcd":
        loader.release(world.load(loader, model))
    sources = [world.load(loader, model).source for model in ("used", "a", "d")]
    assert sources == ["memory", "disk", "memory"]
    loader.release(used)
    loader.release(used)
    loader.release(used)  # once too often is nothing


def test_what_is_handed_out_cannot_be_evicted_by_another_process(world: World) -> None:
    loader = world.loader()
    graph = world.load(loader)
    other = GraphCache(world.graphs, limit_bytes=1, boot="b", clock=world.clock, token=lambda: "o", emit=print)
    assert other.evict(0) == 0
    loader.release(graph)
    assert other.evict(0) == 0
    loader.close()
    loader.close()
    assert other.evict(0) == 1


def test_two_loads_at_once_compile_once(world: World) -> None:
    loader = world.loader()
    digests = {"config.json": digest_of(b"c"), "tokenizer.json": digest_of(b"t"), "a.safetensors": digest_of(b"w")}

    async def both() -> list[LoadedGraph]:
        return await asyncio.gather(*[loader.load("m", "1", world.root, digests, tier="mapped") for _ in range(4)])

    assert sorted(graph.source for graph in asyncio.run(both())) == ["compile", "memory", "memory", "memory"]


def test_the_raw_graph_is_built_apart_and_removed_at_the_end(world: World) -> None:
    loader = world.loader()
    graph = world.load(loader, tier="raw")
    assert (graph.source, graph.tier) == ("raw", "raw")
    assert world.compiler.jobs[0].key is None
    assert world.load(loader, tier="raw").source == "memory"
    assert (graph.graph_folder / "graph.onnx").exists()
    loader.close()
    assert not graph.graph_folder.exists()


def test_a_failed_compile_is_said_and_tried_once_more(world: World) -> None:
    world.compiler.errors = [CompileFailed("killed", stage="compiling")]
    assert world.load(world.loader()).source == "compile"
    assert world.names() == [CompileRetried, CompileFinished]
    assert [event.stage for event in world.events if isinstance(event, CompileRetried)] == ["compiling"]


def test_a_compile_that_fails_twice_leaves_nothing_behind_and_can_be_asked_again(world: World) -> None:
    world.compiler.errors = [CompileFailed("killed"), CompileFailed("killed")]
    loader = world.loader()
    with pytest.raises(CompileFailed):
        world.load(loader)
    assert [path.name for path in world.graphs.iterdir() if path.suffix not in {".lock", ".failed"}] == []
    assert world.load(loader).source == "compile"


def test_a_model_that_is_none_is_not_tried_twice(world: World) -> None:
    world.compiler.errors = [UnknownArchitecture("no")]
    with pytest.raises(UnknownArchitecture):
        world.load(world.loader())
    assert len(world.compiler.jobs) == 1
    assert [path.name for path in world.graphs.iterdir() if path.suffix not in {".lock", ".failed"}] == []


def test_bytes_that_are_not_what_was_written_are_a_failed_compile(world: World) -> None:
    world.compiler.after = lambda folder: (folder / "weights.bin").write_bytes(b"other")
    with pytest.raises(CompileFailed, match="damaged"):
        world.load(world.loader())
    assert world.names() == [CompileRetried, CompileRetried]


@pytest.mark.parametrize("tier", ["mapped", "raw"])
def test_a_cache_that_cannot_be_written_is_said_once_and_worked_around(world: World, tier: str) -> None:
    world.graphs.write_text("a file, where the folder should be")
    loader = world.loader()
    first, second = world.load(loader, "a", tier), world.load(loader, "b", tier)
    assert first.graph_folder.is_relative_to(world.scratch)
    assert world.names().count(GraphCacheUnavailable) == 1
    assert world.load(loader, "a", tier).source == "memory"
    loader.close()
    assert not first.graph_folder.exists()
    assert not second.graph_folder.exists()


class Trouble:
    """A disk that refuses the first calls, for a reason that may pass or not."""

    def __init__(self, real: Callable[..., object], number: int, times: int) -> None:
        self._real, self._number, self.left, self.calls = real, number, times, 0

    def __call__(self, *args: object, **named: object) -> object:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise OSError(self._number, os.strerror(self._number))
        return self._real(*args, **named)


def test_trouble_with_the_disk_that_passes_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_maker, "_DELAYS_S", (0.0, 0.0))
    trouble = Trouble(graph_cache.pin_graph, errno.EIO, 2)
    world.load(world.loader())
    monkeypatch.setattr(graph_cache, "pin_graph", trouble)
    assert world.load(world.loader()).source == "disk"
    assert trouble.calls == 3
    trouble = Trouble(TempFolder.make, errno.ESTALE, 2)
    monkeypatch.setattr(TempFolder, "make", trouble)
    assert world.load(world.loader(), "other").graph_folder.is_relative_to(world.graphs)
    assert GraphCacheUnavailable not in world.names()


@pytest.mark.parametrize(("number", "calls"), [(errno.EIO, 4), (errno.EROFS, 2)])
def test_trouble_that_stays_is_worked_around_and_what_cannot_pass_is_not_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, calls: int
) -> None:
    monkeypatch.setattr(graph_maker, "_DELAYS_S", (0.0, 0.0))
    trouble = Trouble(TempFolder.make, number, calls - 1)
    monkeypatch.setattr(TempFolder, "make", trouble)
    assert world.load(world.loader()).graph_folder.is_relative_to(world.scratch)
    assert trouble.calls == calls
    assert world.names() == [GraphCacheUnavailable, CompileFinished]


def test_no_space_in_the_cache_is_worked_around_and_leaves_nothing_there(world: World) -> None:
    world.compiler.errors = [NotEnoughSpace("full")]
    graph = world.load(world.loader())
    assert graph.graph_folder.is_relative_to(world.scratch)
    assert world.names() == [GraphCacheUnavailable, CompileFinished]
    assert list(world.graphs.glob(".tmp*")) == []


def test_no_space_anywhere_is_the_error(world: World) -> None:
    world.compiler.errors = [NotEnoughSpace("full"), NotEnoughSpace("full there too")]
    with pytest.raises(NotEnoughSpace, match="there too"):
        world.load(world.loader())
    world.scratch.rmdir()
    world.scratch.write_text("a file")
    world.compiler.errors = [NotEnoughSpace("full")]
    with pytest.raises(StorageError, match="no place to compile"):
        world.load(world.loader())


def test_a_graph_larger_than_the_cache_is_served_from_where_it_was_made(world: World) -> None:
    loader = world.loader(limit_bytes=100)
    graph = world.load(loader)
    assert graph.source == "compile"
    assert (graph.graph_folder / "weights.bin").exists()
    assert GraphCacheUnavailable in world.names()
    loader.close()
    assert not graph.graph_folder.exists()


def test_an_entry_of_a_later_format_is_left_alone(world: World) -> None:
    graph = world.load(world.loader())
    header = graph.graph_folder / "header.json"
    body = json.loads(header.read_bytes())["body"]
    body["format"] = [99, 0]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    newer = json.dumps({"body": body, "sha256": digest_of(canonical)}, sort_keys=True, separators=(",", ":"))
    header.write_text(newer)
    assert world.load(world.loader()).graph_folder.is_relative_to(world.scratch)
    assert header.read_text() == newer


def test_a_graph_that_proves_bad_in_use_is_compiled_again(world: World) -> None:
    loader = world.loader()
    graph = world.load(loader)
    asyncio.run(loader.invalidate(graph, "the first answer was wrong"))
    assert world.load(loader).source == "compile"
    assert world.names() == [CompileFinished, GraphDropped, CompileFinished]


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_release_without_a_needed_file_is_no_model(world: World, missing: str) -> None:
    digests = {name: digest_of(b"x") for name in ("config.json", "tokenizer.json", "model.safetensors")}
    del digests[missing]
    with pytest.raises(ModelError, match=missing):
        asyncio.run(world.loader().load("m", "1", world.root, digests, tier="mapped"))


@pytest.mark.parametrize(
    ("config", "limit"), [('{"max_position_embeddings": 64}', 64), ("{", 4096), ("[]", 4096), (None, 4096)]
)
def test_the_context_is_bounded_by_the_model_and_by_the_graph(world: World, config: str | None, limit: int) -> None:
    (world.root / "model").mkdir()
    if config is not None:
        (world.root / "model" / "config.json").write_text(config)
    assert world.load(world.loader()).max_positions == limit


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


def test_a_graph_in_use_is_hashed_on_request_and_its_rot_found(world: World) -> None:
    loader = world.loader()
    graph = world.load(loader)
    asyncio.run(loader.verify(graph))
    path = graph.graph_folder / "weights.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Damaged, match=r"weights.bin of the compiled graph is damaged"):
        asyncio.run(loader.verify(graph))
    asyncio.run(loader.verify(world.load(loader, tier="raw")))
    loader.close()


def test_a_graph_is_unproved_in_a_new_boot_until_it_is_confirmed(world: World) -> None:
    loader = world.loader()
    assert world.load(loader).is_proved  # the compiler has tested it a moment ago
    loader.close()
    world.boot = "second boot"
    for _ in range(2):
        loader = world.loader()
        graph = world.load(loader)
        assert (graph.source, graph.is_proved) == ("disk", False)
        loader.close()
    loader = world.loader()
    graph = world.load(loader)
    asyncio.run(loader.confirm(graph))
    assert world.load(loader).is_proved
    loader.close()
    assert world.load(world.loader()).is_proved
