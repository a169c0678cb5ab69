"""What a command is given and what it gives back. Light: `entry` reads a command's arguments before the fork."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING

from kensho.base.errors import KenshoError
from kensho.base.structs import Struct, field
from kensho.cli import exits

if TYPE_CHECKING:
    from kensho.app import Kensho
    from kensho.base.clock import Clock
    from kensho.cli.output import Output
    from kensho.runtime.hosts.prefork import Prefork
    from kensho.settings import Settings


class Context(Struct):
    """What a command is given."""

    args: SimpleNamespace
    settings: "Settings"
    output: "Output"
    clock: "Clock"
    first_host: "Prefork | None" = None
    """An engine host that is there already (`entry`), for the command that answers."""

    def open_app(self, *, has_log: bool = True) -> "Kensho":
        """The application on these settings, its events told by this command's output. Use it with `with`."""
        from kensho.app import Kensho

        return Kensho(
            self.settings,
            clock=self.clock,
            listener=self.output.on_event,
            has_log=has_log,
            first_host=self.first_host,
        )


class Result(Struct):
    """How a command ended: the exit code, the keys of its summary and, where it failed after doing something, why."""

    code: int = exits.OK
    keys: Mapping[str, object] = field(factory=dict)
    error: KenshoError | None = None
