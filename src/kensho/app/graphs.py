"""The graph cache of a store, as a person looks after it: what is in it and why, what may go. Blocking, small reads."""

from kensho.app.kensho import Kensho
from kensho.app.opening import make_cache
from kensho.base.errors import ModelError
from kensho.base.structs import Struct
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.graph_identity import key_fields
from kensho.runtime.cache.graph_list import (
    Content,
    FailedGraph,
    GraphInfo,
    Installed,
    content_of,
    list_failed,
    list_graphs,
    prune_graphs,
)
from kensho.runtime.cache.graph_statistics import GraphStatistics
from kensho.runtime.system.machine import Machine, read_machine


class Graphs(Struct):
    """The entries, the longest unused first, the negative ones, and how well they have served."""

    entries: tuple[GraphInfo, ...]
    failed: tuple[FailedGraph, ...]
    statistics: GraphStatistics
    limit_bytes: int

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)

    def as_json(self) -> dict[str, object]:
        """The keys of `kensho graphs list --json`."""
        return {
            "graphs": [entry.as_json() for entry in self.entries],
            "failed": [entry.as_json() for entry in self.failed],
            "size_bytes": self.size_bytes,
            "limit_bytes": self.limit_bytes,
            "statistics": self.statistics.as_json(),
        }


def look_at_graphs(app: Kensho) -> Graphs:
    """No entry is used by that, and nothing is changed."""
    cache, machine = _cache(app), read_machine()
    return Graphs(
        tuple(list_graphs(cache, machine, _installed(app, machine))),
        tuple(list_failed(cache, app.clock.wall_s())),
        cache.statistics(),
        app.settings.graph_cache_bytes,
    )


def prune(app: Kensho) -> Graphs:
    """Remove what nothing on this machine can use any more, graphs of versions that are gone included; what is in use
    stays. Returns what is left."""
    machine = read_machine()
    prune_graphs(_cache(app), machine, _installed(app, machine))
    return look_at_graphs(app)


def clear(app: Kensho) -> Graphs:
    """Remove every graph that no program uses right now; each is compiled again when it is wanted."""
    cache = _cache(app)
    cache.tidy()
    cache.evict(0)
    return look_at_graphs(app)


def _cache(app: Kensho) -> GraphCache:
    return make_cache(app.settings, clock=app.clock, emit=app.emit)


def _installed(app: Kensho, machine: Machine) -> Installed:
    """Every version that a rollback could return to counts: its graph makes the rollback an instant one."""
    found: dict[Content, tuple[str, ...]] = {}
    for release in app.releases():
        digests = {file.path: file.used for file in release.files if file.used is not None}
        try:
            content = content_of(key_fields(digests, machine, 0))
        except ModelError:  # a model without weights has no graph
            continue
        found[content] = (*found.get(content, ()), f"{release.model} {release.version}")
    return found
