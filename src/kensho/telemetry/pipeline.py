"""Where every event goes (prototype: `LoggerService`): the log file by level, and whoever listens.

`Pipeline.emit` is the `Emit` that all slices receive. It is synchronous, takes microseconds and never raises: a fault
in the log must not stop the work that it describes.
"""

import itertools
import os
from collections.abc import Callable
from typing import Protocol

from kensho.base.clock import Clock
from kensho.base.events import Event, Level, Service
from kensho.telemetry.record import SEVERITY, Record

Listener = Callable[[Event], None]


class Sink(Protocol):
    """Takes encoded lines; never raises, never blocks for long."""

    def write(self, line: bytes) -> None: ...

    def close(self) -> None: ...


class Pipeline:
    """Levels per service, changeable at run time; sinks get records at or above the level, listeners get all."""

    def __init__(self, sinks: list[Sink], *, clock: Clock, level: Level = "info") -> None:
        self._sinks = sinks
        self._clock = clock
        self._default = level
        self._levels: dict[Service, Level] = {}
        self._listeners: list[Listener] = []
        self._seq = itertools.count(1)
        self._boot_id = os.urandom(6).hex()
        self.failed_listeners = 0

    def set_level(self, service: Service, level: Level) -> None:
        """Records of `service` below `level` are no longer written; takes effect with the next event."""
        self._levels[service] = level

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event, whatever its level; returns the function that ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def emit(self, event: Event) -> None:
        """Give the event to the log and to all listeners. A listener that raises is counted and stays."""
        if SEVERITY[event.level] >= SEVERITY[self._levels.get(event.service, self._default)]:
            line = Record(event, self._clock.wall_s(), next(self._seq), self._boot_id).encode()
            for sink in self._sinks:
                sink.write(line)
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:
                self.failed_listeners += 1

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
