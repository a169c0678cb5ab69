"""Facts about the application as a whole."""

from dataclasses import dataclass
from typing import ClassVar

from kensho.base.events.event import Event, Level, Service


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished(Event):
    """One step of `kensho demo`."""

    name: ClassVar[str] = "app.demo.step"
    service: ClassVar[Service] = "app"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "demo step {step}: {outcome} in {seconds:.2f} s"
    step: str
    outcome: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRaised(Event):
    """An error that reached a caller. `frames` are file:line:function, innermost last; never locals."""

    name: ClassVar[str] = "app.error.raised"
    service: ClassVar[Service] = "app"
    level: ClassVar[Level] = "error"
    text: ClassVar[str] = "{code}: {reason}"
    code: str
    reason: str
    frames: tuple[str, ...]
