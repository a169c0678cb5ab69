"""How things stand, in one word, one sentence and details. Pure: made from what the store recorded."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.structs import Struct, replace

State = Literal["ready", "working", "degraded", "overloaded", "damaged", "empty", "storage-missing"]


class ModelStatus(Struct):
    model: str
    version: str
    """The current one; empty if none is installed (the model was wanted and could not be had)."""
    previous: str | None
    """The version a rollback goes to."""
    state: Literal["ready", "degraded", "damaged"]
    size_bytes: int
    reason: str = ""
    """Why it is not ready, in words."""
    pinned: str | None = None
    """The version at which it is held."""
    verified_at_s: Seconds | None = None
    """When the byte of it that was verified longest ago was; None if something of it has no valid record."""
    since_s: Seconds | None = None
    """Since when it is degraded."""
    instead: str = ""
    """What is used instead, in words."""
    ends: str = ""
    """What would end it, in words."""
    tier: str = ""
    """On which tier this application answers from it; empty: it is not loaded here."""
    is_upgrading: bool = False
    """Another tier is being prepared: its graph is compiled, or its engines start."""


class LastCheck(Struct):
    kind: str
    """quick, load, scrub or full."""
    at_wall_s: Seconds


class Updates(Struct):
    """What the signed metadata last accepted says of updates."""

    refreshed_at_s: Seconds
    expires_at_s: Seconds
    is_expired: bool
    """Updates are refused until fresh metadata comes; what is installed works."""


class Status(Struct):
    state: State
    sentence: str
    models: tuple[ModelStatus, ...] = ()
    checks: tuple[LastCheck, ...] = ()
    """The last one of each kind, the latest first."""
    source: str | None = None
    updates: Updates | None = None
    """None before the first pull."""

    @property
    def last_check(self) -> LastCheck | None:
        return self.checks[0] if self.checks else None

    def as_json(self) -> dict[str, object]:
        """The keys of `kensho status --json`. Times are seconds since 1970."""
        check, updates = self.last_check, self.updates
        models = [
            {
                "model": m.model,
                "version": m.version,
                "previous": m.previous,
                "pinned": m.pinned,
                "state": m.state,
                "size_bytes": m.size_bytes,
                "verified_at": m.verified_at_s,
                "reason": m.reason,
                "since": m.since_s,
                "instead": m.instead,
                "ends": m.ends,
                "tier": m.tier,
                "upgrading": m.is_upgrading,
            }
            for m in self.models
        ]
        metadata = updates and {
            "refreshed_at": updates.refreshed_at_s,
            "expires_at": updates.expires_at_s,
            "is_expired": updates.is_expired,
        }
        return {
            "state": self.state,
            "sentence": self.sentence,
            "models": models,
            "last_check": None if check is None else {"kind": check.kind, "at": check.at_wall_s},
            "checks": {check.kind: check.at_wall_s for check in self.checks},
            "source": self.source,
            "metadata": metadata,
        }


class LoadedTier(Struct):
    """What answers from a version now."""

    tier: str
    is_upgrading: bool


def with_tiers(status: Status, loaded: Mapping[tuple[str, str], LoadedTier]) -> Status:
    """The status with what is loaded in this application, by (model, version)."""
    models = []
    for model in status.models:
        found = loaded.get((model.model, model.version))
        models.append(replace(model, tier=found.tier, is_upgrading=found.is_upgrading) if found else model)
    return replace(status, models=tuple(models))


def with_overload(status: Status, models: Sequence[str]) -> Status:
    """The status of an application whose queues for these models refuse what is not important (row S5)."""
    if not models or status.state not in ("ready", "degraded"):
        return status
    names = ", ".join(models)
    return replace(status, state="overloaded", sentence=f"Overloaded, pausing unimportant work: {names}.")


def make_status(
    models: tuple[ModelStatus, ...],
    checks: tuple[LastCheck, ...],
    source: str | None,
    updates: Updates | None = None,
) -> Status:
    """The worst state of any model is the state of the whole. That updates are refused is said, and no worse state:
    everything that is installed works."""
    state, sentence = _judge(models, source)
    if updates and updates.is_expired:
        day = datetime.fromtimestamp(updates.expires_at_s, UTC).strftime("%Y-%m-%d")
        sentence += f" Updates are refused until fresh metadata comes: the publisher's expired on {day}."
    return Status(state, sentence, models, checks, source, updates)


def _judge(models: tuple[ModelStatus, ...], source: str | None) -> tuple[State, str]:
    installed = [m for m in models if m.version]
    damaged = [m.model for m in models if m.state == "damaged"]
    degraded = [m for m in models if m.state == "degraded"]
    why = "; ".join(f"{m.model}: {m.reason}" for m in degraded)
    if damaged:
        return "damaged", f"Damaged: {', '.join(damaged)}."
    if not installed:
        if degraded:
            return "empty", f"Nothing is installed: {why}."
        return "empty", "Nothing is installed yet. Run kensho pull MODEL." if source else "No publisher is trusted yet."
    if degraded:
        return "degraded", f"Degraded, and working: {why}."
    count = "1 model is" if len(models) == 1 else f"{len(models)} models are"
    return "ready", f"Ready: {count} installed and verified."
