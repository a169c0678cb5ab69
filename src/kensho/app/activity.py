"""What is loaded in this application and how it does, as values: for `status` and for whoever watches."""

from kensho.app.places import Place
from kensho.app.serving import Serving
from kensho.app.status import LoadedVersion
from kensho.base.structs import Struct


class EngineActivity(Struct, kw_only=True):
    """One engine of a loaded model."""

    engine: str
    pid: int | None
    """None: its process does not run now."""
    tier: str
    circuit: dict[str, object]
    """Row S3: `state`, `reason`, `advice`, `fallback_for_s`, counters ...: `resilience.circuit_status`."""


class LoadedModel(Struct, kw_only=True):
    """One version of a model with engines up."""

    model: str
    version: str
    tier: str
    is_upgrading: bool
    """Another tier of it is being prepared."""
    is_pinned: bool
    engines: tuple[EngineActivity, ...]
    level: str
    """Of its queue: NORMAL, PRESSURED, SATURATED."""
    waiting: dict[str, int]
    """Requests in the queue, by priority."""
    running: int
    slots: int
    """How many may run at once now."""
    wanted_version: str = ""
    """The one that the store has now, if it is another one: it takes the requests as soon as it can."""
    kept_because: str = ""
    """Why it cannot; empty: it is being prepared."""


def describe_loaded(serving: Serving) -> list[LoadedModel]:
    """Everything that is loaded, the latest used last."""
    found = []
    for place in serving.loaded():
        served, version = place.loaded.served, _version(place)
        queue = served.scheduler.snapshot()
        engines = tuple(
            EngineActivity(
                engine=engine.name,
                pid=engine.pid,
                tier=served.tier_of(engine.name),
                circuit=queue.circuits[engine.name].as_fields(),
            )
            for engine in served.engines
        )
        found.append(
            LoadedModel(
                model=place.installed.model,
                version=version.version,
                tier=version.tier,
                is_upgrading=version.is_upgrading,
                is_pinned=place.is_pinned,
                engines=engines,
                level=str(queue.level.value),
                waiting={priority.name.lower(): count for priority, count in queue.waiting.items()},
                running=queue.running,
                slots=queue.slots,
                wanted_version=version.wanted_version,
                kept_because=version.kept_because,
            )
        )
    return found


def loaded_versions(serving: Serving) -> dict[str, LoadedVersion]:
    """What answers for each loaded model. May be called from any thread."""
    return {place.installed.model: _version(place) for place in serving.loaded()}


def _version(place: Place) -> LoadedVersion:
    successor = place.successor
    return LoadedVersion(
        version=place.installed.version,
        tier=place.loaded.served.graph.tier,
        is_upgrading=place.is_upgrading,
        wanted_version=successor.version if successor else "",
        kept_because=successor.error.message if successor and successor.error else "",
        kept_since_wall_s=successor.since_wall_s if successor else 0.0,
    )
