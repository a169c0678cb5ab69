"""What the loader found and an engine host is given: which files to open, and in what form."""

from pathlib import Path
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.ids import GraphKey
from kensho.base.structs import Struct
from kensho.runtime.hosts.frames import Tier

Origin = Literal["memory", "disk", "compile", "raw"]


class LoadedGraph(Struct):
    """A model in a form that a session can open at once. The files stay as long as its loader is open."""

    model: str
    version: str
    key: GraphKey
    graph_folder: Path
    model_folder: Path
    tier: Tier
    max_positions: int
    """The longest context that it can serve, in tokens."""
    source: Origin
    """Where it was found (row R3); raw = built without compiling."""
    seconds: Seconds
    """What finding or making it took."""
    is_proved: bool = True
    """False: its bytes are right, but it has not run in this boot of the machine. Let it pass its self-test, then
    `ModelLoader.confirm` it, or `invalidate` it."""
