"""Small compiled graphs without a compiler: bytes of any content with a header that fits. And a real one to spoil."""

import shutil
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
from kensho.testing.clock import VirtualClock

sys.path.append(str(Path(__file__).parent))
from loading import World

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


@pytest.fixture
def write() -> Callable[..., GraphHeader]:
    """What a compiler leaves: (folder, content, key=...) -> the header."""
    return write_graph


@pytest.fixture
def world(tmp_path: Path, write: Callable[..., GraphHeader]) -> World:
    return World(tmp_path, write)


@pytest.fixture
def compiled(graph: LoadedGraph, tmp_path: Path) -> LoadedGraph:
    """A really compiled entry under its key, to spoil."""
    folder = tmp_path / "graphs" / graph.key
    shutil.copytree(graph.graph_folder, folder)
    return replace(graph, graph_folder=folder)
