"""How things stand, in one word, one sentence and details. Pure: made from what the store recorded."""

from dataclasses import dataclass
from typing import Literal

from kensho.base.clock import Seconds

State = Literal["ready", "working", "degraded", "overloaded", "damaged", "empty", "storage-missing"]


@dataclass(frozen=True, slots=True)
class ModelStatus:
    model: str
    version: str
    previous: str | None
    """The version a rollback goes to."""
    state: Literal["ready", "degraded", "damaged"]
    size_bytes: int
    reason: str = ""
    """Why it is not ready, in words."""


@dataclass(frozen=True, slots=True)
class LastCheck:
    kind: str
    """quick, load or full."""
    at_wall_s: Seconds


@dataclass(frozen=True, slots=True)
class Status:
    state: State
    sentence: str
    models: tuple[ModelStatus, ...] = ()
    last_check: LastCheck | None = None
    source: str | None = None

    def as_json(self) -> dict[str, object]:
        """The keys of `kensho status --json`."""
        check = self.last_check
        models = [
            {
                "model": m.model,
                "version": m.version,
                "previous": m.previous,
                "state": m.state,
                "size_bytes": m.size_bytes,
                "reason": m.reason,
            }
            for m in self.models
        ]
        return {
            "state": self.state,
            "sentence": self.sentence,
            "models": models,
            "last_check": None if check is None else {"kind": check.kind, "at": check.at_wall_s},
            "source": self.source,
        }


def make_status(models: tuple[ModelStatus, ...], last_check: LastCheck | None, source: str | None) -> Status:
    """The worst state of any model is the state of the whole."""
    damaged = [m.model for m in models if m.state == "damaged"]
    degraded = [m for m in models if m.state == "degraded"]
    if damaged:
        return Status("damaged", f"Damaged: {', '.join(damaged)}.", models, last_check, source)
    if degraded:
        why = "; ".join(f"{m.model}: {m.reason}" for m in degraded)
        return Status("degraded", f"Degraded, and working: {why}.", models, last_check, source)
    if not models:
        sentence = "Nothing is installed yet. Run kensho pull MODEL." if source else "No publisher is trusted yet."
        return Status("empty", sentence, models, last_check, source)
    count = "1 model is" if len(models) == 1 else f"{len(models)} models are"
    return Status("ready", f"Ready: {count} installed and verified.", models, last_check, source)
