"""A simulated machine with a store, and small models for it: what `kensho init` and `kensho pull` are made of.

    client = Client(tmp_path / "store", world)              # world: a `SimulatedRepository`
    client.pull(world.source())
    assert client.content() == model_files(FIRST)

Time is virtual, randomness is constant, events are collected, and one connection makes every run the same.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from kensho.base.events import Event
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.sources import Source
from kensho.delivery.store import Store
from kensho.delivery.trust import Trust
from kensho.delivery.updater import PullReport, Updater
from kensho.testing.clock import VirtualClock
from kensho.testing.memory_source import read_folder
from kensho.testing.repository import SimulatedRepository

E = TypeVar("E", bound=Event)
CLIENT_VERSION = "0.1.0"
NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)
"""Where VirtualClock's wall time starts."""


class Client:
    """One machine. `store` may be used directly; `root` is its folder."""

    def __init__(self, root: Path, world: SimulatedRepository, *, disk: Disk | None = None) -> None:
        self.root = root
        self.clock = VirtualClock(wall_s=NOW.timestamp())
        self.events: list[Event] = []
        self.store = Store.create(root, disk=disk or RealDisk())
        Trust.initialise(self.store.trusted, world.root, self.store.disk)

    def updater(self, *sources: Source, connections: int = 1, client_version: str = CLIENT_VERSION) -> Updater:
        return Updater(
            self.store,
            self.trust(),
            sources,
            client_version=client_version,
            emit=self.events.append,
            clock=self.clock,
            rng=lambda: 0.5,
            connections=connections,
        )

    def trust(self) -> Trust:
        return Trust(
            self.store.trusted,
            now=lambda: datetime.fromtimestamp(self.clock.wall_s(), UTC),
            emit=self.events.append,
            disk=self.store.disk,
        )

    def pull(self, *sources: Source, models: Sequence[str] = ("voice",), connections: int = 1) -> PullReport:
        return self.updater(*sources, connections=connections).pull(models)

    def content(self, model: str = "voice") -> dict[str, bytes]:
        """The files of the current version, as an engine would open them."""
        return read_folder(self.store.model(model).folder)

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


def weights(seed: int, count: int = 6, size: int = 20_000) -> list[bytes]:
    """Tensors' bytes that no compression makes smaller; another seed gives others."""
    return [hashlib.shake_256(b"%d %d" % (seed, number)).digest(size) for number in range(count)]


def model_files(pieces: list[bytes], **more: bytes) -> dict[str, bytes]:
    """A model folder whose safetensors file has one tensor for each piece."""
    table, offset = {}, 0
    for number, piece in enumerate(pieces):
        table[f"t{number}"] = {"dtype": "U8", "shape": [len(piece)], "data_offsets": [offset, offset + len(piece)]}
        offset += len(piece)
    header = json.dumps(table).encode()
    weights = struct.pack("<Q", len(header)) + header + b"".join(pieces)
    named = {name.replace("_", "."): data for name, data in more.items()}
    return {"config.json": b'{"model_type": "gemma3_text"}', "model.safetensors": weights, "empty.txt": b"", **named}


FIRST = weights(1)
SECOND = [*FIRST[:2], weights(2)[0], *FIRST[3:]]
"""One tensor of six is new."""
