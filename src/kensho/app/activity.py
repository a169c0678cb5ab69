"""What is loaded in this application and how it does, as values: for `status` and for whoever watches."""

from kensho.app.serving import Serving
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
    is_pinned: bool
    engines: tuple[EngineActivity, ...]
    level: str
    """Of its queue: NORMAL, PRESSURED, SATURATED."""
    waiting: dict[str, int]
    """Requests in the queue, by priority."""
    running: int
    slots: int
    """How many may run at once now."""


def describe_loaded(serving: Serving) -> list[LoadedModel]:
    """Everything that is loaded, the latest used last."""
    found = []
    for served, tier, is_pinned in serving.loaded():
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
                model=served.graph.model,
                version=served.graph.version,
                tier=tier.tier,
                is_upgrading=tier.is_upgrading,
                is_pinned=is_pinned,
                engines=engines,
                level=str(queue.level.value),
                waiting={priority.name.lower(): count for priority, count in queue.waiting.items()},
                running=queue.running,
                slots=queue.slots,
            )
        )
    return found
