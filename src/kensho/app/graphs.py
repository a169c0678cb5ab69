"""The graph cache of a store, as a person looks after it: what is in it and why, what may go. Blocking, small reads."""

from collections.abc import Iterator
from pathlib import Path

from kensho.app.kensho import Kensho
from kensho.app.opening import make_cache
from kensho.base.errors import ModelError
from kensho.base.ids import Digest
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
from kensho.runtime.text.tokenizer.files import made_name
from kensho.runtime.text.tokenizer.made_here import list_made, remove_made


class TablesInfo(Struct):
    """Tokenizer tables that this machine has made for models that came without."""

    name: str
    size_bytes: int
    used_by: tuple[str, ...]
    """The installed models that they fit; empty: those are gone."""

    def as_json(self) -> dict[str, object]:
        """One item of the key `tables`."""
        return {"name": self.name, "size_bytes": self.size_bytes, "used_by": list(self.used_by)}


class Graphs(Struct):
    """The entries, the longest unused first, the negative ones, and how well they have served."""

    entries: tuple[GraphInfo, ...]
    failed: tuple[FailedGraph, ...]
    tables: tuple[TablesInfo, ...]
    statistics: GraphStatistics
    limit_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of the entries: what the limit bounds."""
        return sum(entry.size_bytes for entry in self.entries)

    @property
    def tables_bytes(self) -> int:
        return sum(tables.size_bytes for tables in self.tables)

    def as_json(self) -> dict[str, object]:
        """The keys of `kensho graphs list --json`."""
        return {
            "graphs": [entry.as_json() for entry in self.entries],
            "failed": [entry.as_json() for entry in self.failed],
            "tables": [tables.as_json() for tables in self.tables],
            "size_bytes": self.size_bytes,
            "limit_bytes": self.limit_bytes,
            "statistics": self.statistics.as_json(),
        }


def look_at_graphs(app: Kensho) -> Graphs:
    """No entry is used by that, and nothing is changed."""
    cache, machine = _cache(app), read_machine()
    users = _users_of_tables(app)
    return Graphs(
        tuple(list_graphs(cache, machine, _installed(app, machine))),
        tuple(list_failed(cache, app.clock.wall_s())),
        tuple(TablesInfo(made.name, made.size_bytes, users.get(made.name, ())) for made in list_made(_folder(app))),
        cache.statistics(),
        app.settings.graph_cache_bytes,
    )


def prune(app: Kensho) -> Graphs:
    """Remove what nothing on this machine can use any more, graphs and tokenizer tables of versions that are gone
    included; what is in use stays. Returns what is left."""
    machine = read_machine()
    prune_graphs(_cache(app), machine, _installed(app, machine))
    remove_made(_folder(app), _users_of_tables(app))
    return look_at_graphs(app)


def clear(app: Kensho) -> Graphs:
    """Remove every graph that no program uses right now, and all tokenizer tables; each is made again when it is
    wanted."""
    cache = _cache(app)
    cache.tidy()
    for entry in cache.entries():
        cache.remove(entry.key, "cleared")
    remove_made(_folder(app), ())
    return look_at_graphs(app)


def _cache(app: Kensho) -> GraphCache:
    return make_cache(app.settings, clock=app.clock, emit=app.emit)


def _folder(app: Kensho) -> Path:
    return app.settings.store / "graphs"


def _installed(app: Kensho, machine: Machine) -> Installed:
    """Every version that a rollback could return to counts: its graph makes the rollback an instant one."""
    found: dict[Content, tuple[str, ...]] = {}
    for words, digests in _releases(app):
        try:
            content = content_of(key_fields(digests, machine, 0))
        except ModelError:  # a model without weights has no graph
            continue
        found[content] = (*found.get(content, ()), words)
    return found


def _users_of_tables(app: Kensho) -> dict[str, tuple[str, ...]]:
    """By the name of the tables: who needs them, as above."""
    found: dict[str, tuple[str, ...]] = {}
    for words, digests in _releases(app):
        if "tokenizer.json" in digests:
            name = made_name(digests)
            found[name] = (*found.get(name, ()), words)
    return found


def _releases(app: Kensho) -> Iterator[tuple[str, dict[str, Digest]]]:
    """`model version` of every installed version, and the digests of its files."""
    for release in app.releases():
        yield (
            f"{release.model} {release.version}",
            {file.path: file.used for file in release.files if file.used is not None},
        )
