import asyncio
import json

import pytest
from loading import DIGESTS, World

from kensho.base.errors import Damaged, ModelError
from kensho.base.events import CompileFinished, GraphDropped
from kensho.base.ids import digest_of
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.cache.loader import LoaderStats
from kensho.runtime.system.machine import Machine

pytestmark = pytest.mark.store


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
