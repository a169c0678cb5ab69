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
    """Another tier, or this version, is being prepared: its graph is compiled, or its engines start."""
    answering: str = ""
    """The version that this application answers from; empty: it is not loaded here."""


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
                "answering": m.answering,
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


class LoadedVersion(Struct, kw_only=True):
    """What answers for a model now."""

    version: str
    tier: str
    is_upgrading: bool
    """Another tier of it is being prepared."""
    wanted_version: str = ""
    """The one that the store has now, if it is another one."""
    kept_because: str = ""
    """Why that one cannot answer here, in words; empty: it is being prepared."""
    kept_since_wall_s: Seconds = 0.0


def with_loaded(status: Status, loaded: Mapping[str, LoadedVersion]) -> Status:
    """The status with what is loaded in this application, by model."""
    models = tuple(_with(model, loaded[model.model]) if model.model in loaded else model for model in status.models)
    return make_status(models, status.checks, status.source, status.updates) if models else status


def _with(model: ModelStatus, loaded: LoadedVersion) -> ModelStatus:
    model = replace(model, tier=loaded.tier, is_upgrading=loaded.is_upgrading, answering=loaded.version)
    if loaded.version == model.version or not model.version:
        return model
    if not loaded.kept_because:
        return replace(model, is_upgrading=True)
    reason = f"{loaded.wanted_version} cannot be used here: {loaded.kept_because}"
    ends = "it is tried again by itself; kensho rollback stays with the old one"
    since_s = min(model.since_s or loaded.kept_since_wall_s, loaded.kept_since_wall_s)
    return replace(_degraded(model, reason, instead=f"{loaded.version} answers", ends=ends), since_s=since_s)


def _degraded(model: ModelStatus, reason: str, *, instead: str, ends: str) -> ModelStatus:
    """For this reason too: its words come after those that are there."""
    return replace(
        model,
        state="damaged" if model.state == "damaged" else "degraded",
        reason="; ".join(filter(None, (model.reason, reason))),
        instead="; ".join(filter(None, (model.instead, instead))),
        ends="; ".join(filter(None, (model.ends, ends))),
    )


class EnginesOut(Struct):
    """Why no engine of a model takes requests, what would end that, and what answers meanwhile. In words."""

    why: str
    ends: str
    instead: str = ""


def with_engines_out(status: Status, out: Mapping[str, EnginesOut]) -> Status:
    """The status where these models cannot answer here, however whole they are."""
    if not any(model.model in out and model.version for model in status.models):
        return status
    models = tuple(_out(model, out[model.model]) if model.model in out else model for model in status.models)
    return make_status(models, status.checks, status.source, status.updates)


def _out(model: ModelStatus, engines: EnginesOut) -> ModelStatus:
    reason = f"no engine takes its requests: {engines.why}"
    return _degraded(model, reason, instead=engines.instead, ends=engines.ends)


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
