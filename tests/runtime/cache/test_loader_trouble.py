"""Compiles that fail and disks that refuse: said, worked around where that is possible, and nothing is left behind."""

import errno
import os
from collections.abc import Callable

import pytest
from loading import World

from kensho.base.errors import CompileFailed, NotEnoughSpace, StorageError, UnknownArchitecture
from kensho.base.events import CompileFinished, CompileRetried, GraphCacheUnavailable
from kensho.runtime.cache import graph_cache, graph_maker
from kensho.runtime.cache.temp_folder import TempFolder

pytestmark = pytest.mark.store


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
