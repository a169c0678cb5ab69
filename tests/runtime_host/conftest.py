"""Small compiled graphs without a compiler: bytes of any content with a header that fits."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from kensho.base.events import Event
from kensho.base.ids import GraphKey, digest_of
from kensho.base.structs import replace
from kensho.runtime.cache.graph_cache import GraphCache, Hit
from kensho.runtime.cache.graph_hashing import hash_section
from kensho.runtime.cache.header import GraphHeader, KeyFields, SelfTestVector, dump_header, graph_key
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.system.machine import read_machine
from kensho.testing.clock import VirtualClock

MakeEntry = Callable[[GraphCache, str], GraphKey]


def key_fields(content: str) -> KeyFields:
    return KeyFields(
        weights_digest=digest_of(content.encode()),
        config_digest=digest_of(b"config"),
        tokenizer_digest=digest_of(b"tokenizer"),
        engine_version="1",
        arch="x86_64",
        system="linux",
        cpu_features=(),
        max_positions=64,
    )


def machine_key(content: str) -> KeyFields:
    """A key under which this machine compiles."""
    machine = read_machine()
    return replace(
        key_fields(content),
        engine_version=machine.engine_version,
        arch=machine.arch,
        system=machine.system,
        cpu_features=machine.cpu_features,
        max_positions=256,
    )


def write_graph(folder: Path, content: str, *, size_bytes: int = 5000, key: KeyFields | None = None) -> GraphHeader:
    """A complete graph of `content` in the existing `folder`, as a compiler leaves it."""
    graph, weights = f"graph of {content}".encode(), (content.encode() * size_bytes)[:size_bytes]
    header = GraphHeader(
        model="m",
        version="1",
        schema=digest_of(b"schema"),
        key=key or key_fields(content),
        form="u8",
        vocab_size=8,
        kv_bytes_per_position=8,
        sections=(
            hash_section("graph", "graph.onnx", 0, memoryview(graph), "graph"),
            hash_section("weights", "weights.bin", 0, memoryview(weights)),
        ),
        self_test=SelfTestVector((1,), (2,), (3,), 4),
        created="2026-01-02T03:04:05Z",
        compile_ms=1,
    )
    (folder / "graph.onnx").write_bytes(graph)
    (folder / "weights.bin").write_bytes(weights)
    (folder / "header.json").write_bytes(dump_header(header))
    return header


def publish(cache: GraphCache, content: str, *, size_bytes: int = 5000) -> tuple[GraphKey, Hit]:
    key = graph_key(key_fields(content))
    lock = cache.compile_lock(key)
    assert lock
    temp = cache.make_temp()
    write_graph(temp.path, content, size_bytes=size_bytes)
    try:
        return key, cache.publish(key, temp)
    finally:
        temp.close()
        lock.close()


@pytest.fixture
def put() -> Callable[..., tuple[GraphKey, Hit]]:
    """Publish an entry of some content: (cache, content, size_bytes=5000) -> its key and the pinned hit."""
    return publish


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def clock() -> VirtualClock:
    """The caches' clock."""
    return VirtualClock()


@pytest.fixture
def make_cache(tmp_path: Path, events: list[Event], clock: VirtualClock) -> Iterator[Callable[..., GraphCache]]:
    """A cache on the same folder each time, as another process would have it."""
    numbers = count()

    def make(limit_bytes: int = 1 << 30, boot: str = "first boot") -> GraphCache:
        return GraphCache(
            tmp_path / "graphs",
            limit_bytes=limit_bytes,
            boot=boot,
            clock=clock,
            token=lambda: f"t{next(numbers)}",
            emit=events.append,
        )

    yield make


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma-3 folder with random weights (0.7 MB). Shared: do not change it."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    script = Path(__file__).parents[2] / "bench" / "data" / "make_gemma.py"
    subprocess.run([sys.executable, script, folder, "--size", "tiny"], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def graph(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadedGraph:
    """The same model compiled."""
    folder = tmp_path_factory.mktemp("graph")
    key = machine_key("tiny")
    job = CompileJob("m", "1", str(model_folder), str(folder), key.max_positions, 1, key)
    asyncio.run(Compiler(env={}, stall_s=60, emit=lambda _: None).compile(job))
    return LoadedGraph("m", "1", graph_key(key), folder, model_folder, "mapped", key.max_positions, "compile", 0.5)


@pytest.fixture
def model_copy(model_folder: Path, tmp_path: Path) -> Path:
    """The same folder to spoil."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture
def write() -> Callable[..., GraphHeader]:
    """What a compiler leaves: (folder, content, key=...) -> the header."""
    return write_graph
