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


class DaemonStarted(Event, kw_only=True):
    """`kensho serve` answers."""

    name: ClassVar[str] = "app.daemon.started"
    service: ClassVar[Service] = "app"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "the daemon answers on {url}"
    url: str
    pid: int


class DaemonStopped(Event, kw_only=True):
    """It has stopped in order: nothing of it is left."""

    name: ClassVar[str] = "app.daemon.stopped"
    service: ClassVar[Service] = "app"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "the daemon has stopped after {seconds:.0f} s"
    seconds: float
