"""What an event is. The catalogue beside this file lists every fact that Kensho reports, as frozen data.

Logs, metrics, progress bars and the live status are all made from these objects, so they cannot disagree.

Each class fixes its dotted `name`, `service`, `level` and `text` (a sentence for people, filled from the fields).
Fields are plain values with their unit in the name. No secrets, no prompts, no answers: never user content.
Levels: debug = for us, info = a state changed, warning = degraded yet working, error = a person must look.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

from kensho.base.structs import Struct, fields

Level = Literal["debug", "info", "warning", "error"]
Service = Literal["delivery", "runtime", "resilience", "app"]


class Event(Struct, kw_only=True):
    """Base of the catalogue."""

    name: ClassVar[str]
    service: ClassVar[Service]
    level: ClassVar[Level]
    text: ClassVar[str]

    def message(self) -> str:
        """The sentence for people."""
        return self.text.format_map(self.fields())

    def fields(self) -> dict[str, object]:
        """The facts, in declaration order."""
        return {name: getattr(self, name) for name in fields(self)}


Emit = Callable[[Event], None]
"""Where facts go. Never blocks for long, never raises."""
