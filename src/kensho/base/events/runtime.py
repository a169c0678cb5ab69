"""Facts about compiling, loading and engine hosts."""

from typing import ClassVar

from kensho.base.events.event import Event, Level, Service


class CompileStage(Event, kw_only=True):
    """`stage` is one of parsing, linking, optimizing, compiling, finalizing; done and total are in `unit`."""

    name: ClassVar[str] = "runtime.compile.stage"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "debug"
    text: ClassVar[str] = "{model}: {stage} {done}/{total} {unit}"
    model: str
    stage: str
    done: int
    total: int
    unit: str


class CompileFinished(Event, kw_only=True):
    name: ClassVar[str] = "runtime.compile.finished"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{model} {version} compiled for this machine in {seconds:.2f} s: {size_bytes} bytes"
    model: str
    version: str
    key: str
    seconds: float
    size_bytes: int


class CompileRetried(Event, kw_only=True):
    name: ClassVar[str] = "runtime.compile.failed"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "compiling {model} {version} failed in {stage}: {reason}"
    model: str
    version: str
    stage: str
    reason: str


class GraphLoaded(Event, kw_only=True):
    """`source` is memory, disk, compile or raw (row R3)."""

    name: ClassVar[str] = "runtime.graph.loaded"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{engine} loaded {model} {version} from {source} in {seconds:.3f} s ({tier} tier)"
    engine: str
    model: str
    version: str
    source: str
    tier: str
    seconds: float


class GraphMissed(Event, kw_only=True):
    """The graph has to be made. `differing` names the key fields in which a cached graph of the same model differs."""

    name: ClassVar[str] = "runtime.graph.missed"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "no compiled graph of {model} {version} here: {reason} {differing}"
    model: str
    version: str
    reason: str
    differing: str


class RecompileStorm(Event, kw_only=True):
    """One content, many graphs: something in the key changes that should not."""

    name: ClassVar[str] = "runtime.graph.storm"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{model} {version} is compiled though {graphs} graphs of it are cached: {differing} differs"
    model: str
    version: str
    graphs: int
    differing: str


class GraphDropped(Event, kw_only=True):
    name: ClassVar[str] = "runtime.graph.dropped"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "graph {key} dropped: {reason}"
    key: str
    reason: str


class GraphCacheUnavailable(Event, kw_only=True):
    name: ClassVar[str] = "runtime.graph_cache.unavailable"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "working without the graph cache: {reason}"
    reason: str


class TierChanged(Event, kw_only=True):
    """Requests from now on go to other engines; what runs is finished by the old ones, which then end."""

    name: ClassVar[str] = "runtime.tier.changed"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{model} {version}: {from_tier} -> {to_tier} tier"
    model: str
    version: str
    from_tier: str
    to_tier: str


class TierKept(Event, kw_only=True):
    """The better tier could not be had; it is tried again later."""

    name: ClassVar[str] = "runtime.tier.kept"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{model} {version} goes on answering on the {tier} tier: {reason}"
    model: str
    version: str
    tier: str
    reason: str


class VersionChanged(Event, kw_only=True):
    """The store has another version now, and requests from now on are answered by it; what runs is finished by the old
    one, whose engines then end."""

    name: ClassVar[str] = "runtime.version.changed"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = (
        "{model} answers from {to_version} now instead of {from_version}; preparing took {seconds:.1f} s"
    )
    model: str
    from_version: str
    to_version: str
    seconds: float


class VersionKept(Event, kw_only=True):
    """The version that the store has now cannot answer here; it is tried again."""

    name: ClassVar[str] = "runtime.version.kept"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{model} goes on answering from {version}, {wanted_version} cannot be used yet: {reason}"
    model: str
    version: str
    wanted_version: str
    reason: str


class TokenizerTables(Event, kw_only=True):
    """`outcome` is made, refused (they are not used and made anew), not possible (the library serves) or failed."""

    name: ClassVar[str] = "runtime.tokenizer.tables"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "tokenizer tables of {model} {version}: {outcome} {detail}"
    model: str
    version: str
    outcome: str
    detail: str
    seconds: float


class ModelClosed(Event, kw_only=True):
    """Its engines have ended; the next request loads it again."""

    name: ClassVar[str] = "runtime.model.closed"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{model} {version} closed after {idle_s:.0f} s without a request"
    model: str
    version: str
    idle_s: float


class ModelWarmed(Event, kw_only=True):
    """Nobody had asked for it yet. `source`: where its graph was found, compile = made for this."""

    name: ClassVar[str] = "runtime.model.warmed"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{model} {version} was loaded ahead of its first request in {seconds:.2f} s ({source})"
    model: str
    version: str
    source: str
    seconds: float


class ModelNotWarmed(Event, kw_only=True):
    """It is loaded when somebody asks for it, as ever."""

    name: ClassVar[str] = "runtime.model.not_warmed"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{model} stays cold until it is asked for: {reason}"
    model: str
    reason: str


class EngineStarted(Event, kw_only=True):
    name: ClassVar[str] = "runtime.engine.started"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "engine {engine} is process {pid}"
    engine: str
    pid: int
    seconds: float


class EngineLost(Event, kw_only=True):
    name: ClassVar[str] = "runtime.engine.lost"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "engine {engine} (process {pid}) is gone: {reason}"
    engine: str
    pid: int
    reason: str


class ForkServerLost(Event, kw_only=True):
    """New engine hosts take longer for a while; its own hosts ended with it, unless it is only refusing (then not)."""

    name: ClassVar[str] = "runtime.fork_server.lost"
    service: ClassVar[Service] = "runtime"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "engine hosts are started without the fork-server (process {pid}): {reason}"
    pid: int | None
    reason: str
