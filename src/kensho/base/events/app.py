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


class LibraryWarned(Event, kw_only=True):
    """What a library of the daemon's has to say. The same words are told at most once a minute; no values in them."""

    name: ClassVar[str] = "app.library.warned"
    service: ClassVar[Service] = "app"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{library} says {times} times: {words}"
    library: str
    words: str
    times: int
    """So often since it was told last."""


class ConnectionsScarce(Event, kw_only=True):
    """More wanted to be connected to the daemon than it has places for; told at most every ten seconds."""

    name: ClassVar[str] = "app.connections.scarce"
    service: ClassVar[Service] = "app"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = (
        "all {places} places for connections by {interface} were taken: {closed} that asked for nothing were closed, "
        "{refused} were refused"
    )
    interface: str
    """HTTP or the store's socket."""
    places: int
    closed: int
    refused: int
