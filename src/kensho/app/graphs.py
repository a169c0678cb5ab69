"""The graph cache of a store, as a person looks after it: what is in it, what may go. Blocking, small reads only."""

from kensho.app.opening import make_cache
from kensho.base.events import Emit
from kensho.base.structs import Struct
from kensho.runtime.graph_list import GraphInfo, list_graphs, prune_graphs
from kensho.runtime.graph_statistics import GraphStatistics
from kensho.runtime.machine import read_machine
from kensho.settings import Settings


class Graphs(Struct):
    """The entries, the longest unused first, and how well they have served."""

    entries: tuple[GraphInfo, ...]
    statistics: GraphStatistics
    limit_bytes: int

    @property
    def size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self.entries)

    def as_json(self) -> dict[str, object]:
        """The keys of `kensho graphs list --json`."""
        return {
            "graphs": [entry.as_json() for entry in self.entries],
            "size_bytes": self.size_bytes,
            "limit_bytes": self.limit_bytes,
            "statistics": self.statistics.as_json(),
        }


def look_at_graphs(settings: Settings, *, emit: Emit) -> Graphs:
    """No entry is used by that, and nothing is changed."""
    cache = make_cache(settings, emit=emit)
    return Graphs(tuple(list_graphs(cache, read_machine())), cache.statistics(), settings.graph_cache_bytes)


def prune(settings: Settings, *, emit: Emit) -> Graphs:
    """Remove what nothing on this machine can use any more; what is in use stays. Returns what is left."""
    prune_graphs(make_cache(settings, emit=emit), read_machine())
    return look_at_graphs(settings, emit=emit)


def clear(settings: Settings, *, emit: Emit) -> Graphs:
    """Remove every graph that no program uses right now; each is compiled again when it is wanted."""
    cache = make_cache(settings, emit=emit)
    cache.tidy()
    cache.evict(0)
    return look_at_graphs(settings, emit=emit)
