"""One event as one JSON line. Pure: values in, bytes out.

A record is one flat object with OpenTelemetry's names: `timestamp` (RFC 3339, UTC, microseconds), `level`,
`severity_number`, `message`, `service`, `event.name` (`kensho.` + the catalogue's name), `seq` (rises by one in a
process: a gap is a loss), `boot_id` (one process's life), then the event's own facts as `kensho.*`. Nothing is
nested but lists. Source of the shape: OpenTelemetry Logs Data Model (stable).
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType

from kensho.base.clock import Seconds
from kensho.base.events import Event, Level
from kensho.base.structs import Struct

SEVERITY: Mapping[Level, int] = {"debug": 5, "info": 9, "warning": 13, "error": 17}
"""OpenTelemetry severity numbers of the four levels."""

MAX_TEXT = 2_000
"""Characters of one text field; longer ones are cut. Guess: a reason longer than that is somebody's data."""


class Record(Struct):
    """An event with its place in time and in the life of a process."""

    event: Event
    wall_s: Seconds
    seq: int
    boot_id: str

    def encode(self) -> bytes:
        """The JSON line, newline included, UTF-8. About 6 us for ten fields."""
        event = self.event
        facts = {f"kensho.{key}": _plain(value) for key, value in event.fields().items()}
        line = {
            "timestamp": _rfc3339(self.wall_s),
            "level": event.level,
            "severity_number": SEVERITY[event.level],
            "message": _plain(event.message()),
            "service": event.service,
            "event.name": f"kensho.{event.name}",
            "seq": self.seq,
            "boot_id": self.boot_id,
            **facts,
        }
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


def frames_of(traceback: TracebackType | None, limit: int = 30) -> tuple[str, ...]:
    """`file:line:function` of each frame, innermost last, at most `limit`. Never locals: they hold secrets.

    Own walk because formatting a traceback costs 60 times as much (measured: 0.28 ms against 0.005 ms).
    """
    frames: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_filename}:{traceback.tb_lineno}:{code.co_name}")
        traceback = traceback.tb_next
    return tuple(frames[-limit:])


def _plain(value: object) -> object:
    """A value that JSON has; anything else becomes text, and text is bounded."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value[:100]]
    text = str(value)
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + "..."


def _rfc3339(wall_s: Seconds) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
