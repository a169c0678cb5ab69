"""The exact graph of the tiny model, and how many KV caches are in memory."""

import sys
import weakref
from pathlib import Path

import pytest

from kensho.runtime.engine.kv_cache import KvCache
from kensho.runtime.graph.raw_graph import build_raw

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def raw_graph(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw-graph")
    build_raw(tiny_model, folder)
    return folder


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[KvCache]:
    """Those in memory."""
    alive: weakref.WeakSet[KvCache] = weakref.WeakSet()

    class Counted(KvCache):
        def __init__(self, *shape: int) -> None:
            super().__init__(*shape)
            alive.add(self)

    monkeypatch.setattr("kensho.runtime.engine.session.KvCache", Counted)
    return alive
