"""What is in the graph cache and of what use it is on this machine: for `kensho graphs list` and `prune`.

The state is read from headers and record files: nothing is hashed, and looking is no use of an entry.
"""

from collections.abc import Mapping
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.errors import Damaged
from kensho.base.ids import Digest, GraphKey
from kensho.base.structs import Struct
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.graph_record import CachedGraph
from kensho.runtime.cache.header import COMPILER, RECIPE_VERSION, FormSpeed, GraphHeader, KeyFields
from kensho.runtime.compiling.compile_failures import CompileFailures
from kensho.runtime.system.machine import Machine

GraphState = Literal["ready", "orphaned", "obsolete", "other_machine", "format_newer", "damaged"]
"""orphaned: no installed version of any model has these weights. obsolete: another engine or compiler made it, or a
format that cannot be migrated: nothing here will load it again. other_machine: for other CPU features; of use where the
disk is shared. format_newer: a later Kensho's; of use to that one."""
_PRUNED: frozenset[GraphState] = frozenset({"orphaned", "obsolete", "damaged"})

Content = tuple[Digest, Digest, Digest]
"""Digests of weights, config and tokenizer."""
Installed = Mapping[Content, tuple[str, ...]]
"""Whose content it is: `model version` of every installed one."""


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
    """Whom it was made for; others may use it."""
    used_by: tuple[str, ...] = ()
    """The installed models that it answers for: why it is here."""
    form: str = ""
    speeds: tuple[FormSpeed, ...] = ()
    engine_version: str = ""
    created: str = ""
    compile_ms: int = 0

    def as_json(self) -> dict[str, object]:
        """One item of the key `graphs`."""
        return {
            "key": self.key,
            "model": self.model,
            "version": self.version,
            "used_by": list(self.used_by),
            "form": self.form,
            "speeds_us": {speed.form: speed.decode_us for speed in self.speeds},
            "size_bytes": self.size_bytes,
            "last_use": self.last_use_wall_s,
            "state": self.state,
            "in_use": self.is_in_use,
            "engine_version": self.engine_version,
            "created": self.created,
            "compile_seconds": self.compile_ms / 1000,
        }


class FailedGraph(Struct):
    """A key whose compile failed: a negative entry."""

    key: GraphKey
    failures: CompileFailures
    barred_s: Seconds
    """How long it is not tried any more; 0 = it is tried when it is wanted."""

    def as_json(self) -> dict[str, object]:
        """One item of the key `failed`."""
        return {
            "key": self.key,
            "model": self.failures.model,
            "failures": self.failures.count,
            "stage": self.failures.stage,
            "reason": self.failures.reason,
            "last": self.failures.at_wall_s,
            "barred_seconds": self.barred_s,
        }


def list_graphs(cache: GraphCache, machine: Machine, installed: Installed) -> list[GraphInfo]:
    """Every entry, the longest unused first. Raises no error."""
    return [_describe(entry, _peek(cache, entry.key), machine, installed) for entry in cache.entries()]


def list_failed(cache: GraphCache, now_wall_s: Seconds) -> list[FailedGraph]:
    """Every negative entry. Raises no error."""
    return [FailedGraph(key, found, found.barred_s(now_wall_s)) for key, found in cache.all_failures().items()]


def prune_graphs(cache: GraphCache, machine: Machine, installed: Installed) -> list[GraphKey]:
    """Remove what nothing here can use any more, negative entries, and what killed compilers left; returns the keys.

    What somebody uses stays.
    """
    cache.tidy()
    useless = [info for info in list_graphs(cache, machine, installed) if info.state in _PRUNED]
    return [info.key for info in useless if cache.remove(info.key, f"pruned: {info.state}")]


def content_of(key: KeyFields) -> Content:
    """What the graph was made from, apart from how and where."""
    return key.weights_digest, key.config_digest, key.tokenizer_digest


def judge_graph(key: KeyFields, machine: Machine, installed: Installed) -> GraphState:
    """Of what use a graph with these key fields is on this machine. Pure."""
    if content_of(key) not in installed:
        return "orphaned"
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


def _describe(entry: CachedGraph, header: GraphHeader | Damaged, machine: Machine, installed: Installed) -> GraphInfo:
    if isinstance(header, Damaged):
        state = _STATES.get(header.facts.get("reason"), "damaged")
        return GraphInfo(entry.key, state, entry.size_bytes, entry.is_pinned, entry.used_at_wall_s)
    return GraphInfo(
        key=entry.key,
        state=judge_graph(header.key, machine, installed),
        size_bytes=entry.size_bytes,
        is_in_use=entry.is_pinned,
        last_use_wall_s=entry.used_at_wall_s,
        model=header.model,
        version=header.version,
        used_by=installed.get(content_of(header.key), ()),
        form=header.form,
        speeds=header.speeds,
        engine_version=header.key.engine_version,
        created=header.created,
        compile_ms=header.compile_ms,
    )
