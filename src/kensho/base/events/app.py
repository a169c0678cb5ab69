"""Facts about the application as a whole."""

from typing import ClassVar

from kensho.base.events.event import Event, Level, Service


class StepFinished(Event, kw_only=True):
    """One step of `kensho demo`."""

    name: ClassVar[str] = "app.demo.step"
    service: ClassVar[Service] = "app"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "demo step {step}: {outcome} in {seconds:.2f} s"
    step: str
    outcome: str
    seconds: float


class ErrorRaised(Event, kw_only=True):
    """An error that reached a caller. `frames` are file:line:function, innermost last; never locals."""

    name: ClassVar[str] = "app.error.raised"
    service: ClassVar[Service] = "app"
    level: ClassVar[Level] = "error"
    text: ClassVar[str] = "{code}: {reason}"
    code: str
    reason: str
    frames: tuple[str, ...]
