"""What a circuit must be told of the machine around its engine. The edges are in `app`; here are their shapes.

    Surroundings(look=..., boot_s=..., memory=...)

Without them a circuit works too: it forgets, does not notice that the machine slept, and leaves HARD_OPEN only when a
person says so.
"""

from collections.abc import Callable
from typing import Protocol

from kensho.base.clock import Seconds
from kensho.base.structs import Struct
from kensho.resilience.saved_circuit import SavedCircuit


class MachineSeen(Struct):
    """One look at the machine, without touching the engine."""

    fingerprint: str
    """Boot id and the versions of engine and driver, as one text: only whether it changed matters."""
    is_device_there: bool


class CircuitMemory(Protocol):
    """Keeps circuits over restarts of the program. Raises nothing: a circuit that is forgotten begins anew."""

    def load(self, model: str, engine: str) -> SavedCircuit | None: ...

    def save(self, model: str, engine: str, circuit: SavedCircuit) -> None:
        """Takes note and returns at once."""
        ...


class Forgetful:
    """Keeps nothing."""

    def load(self, model: str, engine: str) -> SavedCircuit | None:
        return None

    def save(self, model: str, engine: str, circuit: SavedCircuit) -> None:
        return None


class Surroundings(Struct):
    look: Callable[[], MachineSeen] = lambda: MachineSeen("", is_device_there=False)
    """A few reads of small files; called at most once in `check_s`."""
    boot_s: Callable[[], Seconds] = lambda: 0.0
    """A clock that goes on while the machine sleeps, as the monotonic one does not: on Linux CLOCK_BOOTTIME. Read once
    for each request."""
    memory: CircuitMemory = Forgetful()
    form_of: Callable[[str], str] = lambda engine: ""
    """Of an engine by its name: the form of its graph."""


UNKNOWN = Surroundings()

SLEPT_S: Seconds = 2.0
"""So much more sleep than before is a suspend. Between two readings of two clocks there are microseconds, and a
suspend of less than this is none (source: resilience design notes)."""
