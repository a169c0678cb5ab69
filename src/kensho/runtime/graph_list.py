"""What is in the graph cache, for people and for `prune`: each entry with the state that decides whether it is of use.

The state is read from headers and record files: nothing is hashed, and looking is no use of an entry.
"""

from collections.abc import Mapping
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.errors import Damaged
from kensho.base.ids import GraphKey
from kensho.base.structs import Struct
from kensho.runtime.graph_cache import GraphCache
from kensho.runtime.graph_record import CachedGraph
from kensho.runtime.header import COMPILER, RECIPE_VERSION, GraphHeader, KeyFields
from kensho.runtime.machine import Machine

GraphState = Literal["ready", "obsolete", "other_machine", "format_newer", "damaged"]
"""obsolete: an older format, engine or compiler made it, nothing here will load it again. other_machine: for other CPU
features; of use where the disk is shared. format_newer: a later Kensho's; of use to that one."""
_PRUNED: frozenset[GraphState] = frozenset({"obsolete", "damaged"})


class GraphInfo(Struct):
    """One entry. The texts are empty where its header cannot be read."""

    key: GraphKey
    state: GraphState
    size_bytes: int
    is_in_use: bool
    last_use_wall_s: Seconds | None
    """None: it was never looked up."""
    model: str = ""
    version: str = ""
    form: str = ""
    engine_version: str = ""
    created: str = ""
    compile_ms: int = 0

    def as_json(self) -> dict[str, object]:
        """One item of the key `graphs`."""
        return {
            "key": self.key,
            "model": self.model,
            "version": self.version,
            "form": self.form,
            "size_bytes": self.size_bytes,
            "last_use": self.last_use_wall_s,
            "state": self.state,
            "in_use": self.is_in_use,
            "engine_version": self.engine_version,
            "created": self.created,
            "compile_seconds": self.compile_ms / 1000,
        }


def list_graphs(cache: GraphCache, machine: Machine) -> list[GraphInfo]:
    """Every entry, the longest unused first. Raises no error."""
    return [_describe(entry, _peek(cache, entry.key), machine) for entry in cache.entries()]


def prune_graphs(cache: GraphCache, machine: Machine) -> list[GraphKey]:
    """Remove what nothing here can use any more, and what killed compilers left; returns the keys."""
    cache.tidy()
    useless = [info.key for info in list_graphs(cache, machine) if info.state in _PRUNED]
    return [key for key in useless if cache.remove(key, "pruned")]


def judge_graph(key: KeyFields, machine: Machine) -> GraphState:
    """Of what use a graph with these key fields is on this machine. Pure."""
    if (key.arch, key.system, key.cpu_features) != (machine.arch, machine.system, machine.cpu_features):
        return "other_machine"
    made_by = (key.engine_version, key.compiler, key.recipe_version)
    return "ready" if made_by == (machine.engine_version, COMPILER, RECIPE_VERSION) else "obsolete"


def _peek(cache: GraphCache, key: GraphKey) -> GraphHeader | Damaged:
    try:
        return cache.peek(key)
    except Damaged as error:
        return error


_STATES: Mapping[object, GraphState] = {"format_older": "obsolete", "format_newer": "format_newer"}


def _describe(entry: CachedGraph, header: GraphHeader | Damaged, machine: Machine) -> GraphInfo:
    if isinstance(header, Damaged):
        state = _STATES.get(header.facts.get("reason"), "damaged")
        return GraphInfo(entry.key, state, entry.size_bytes, entry.is_pinned, entry.used_at_wall_s)
    return GraphInfo(
        key=entry.key,
        state=judge_graph(header.key, machine),
        size_bytes=entry.size_bytes,
        is_in_use=entry.is_pinned,
        last_use_wall_s=entry.used_at_wall_s,
        model=header.model,
        version=header.version,
        form=header.form,
        engine_version=header.key.engine_version,
        created=header.created,
        compile_ms=header.compile_ms,
    )
