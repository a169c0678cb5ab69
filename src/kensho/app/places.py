"""What is kept of each loaded model, and what is needed of whoever opens models: the parts of `serving`."""

import asyncio
from collections import deque
from typing import Protocol

from kensho.app.opening import ServedModel
from kensho.app.tiers import ModelSizes
from kensho.base.clock import Seconds
from kensho.base.structs import Struct, field
from kensho.delivery.leases import Lease
from kensho.delivery.store import InstalledModel
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.frames import Tier
from kensho.runtime.text.codec import TextCodec


class Opener(Protocol):
    """What is needed of `opening.ModelOpener`."""

    async def find(self, installed: InstalledModel, tier: Tier) -> LoadedGraph | None: ...
    async def make(
        self, installed: InstalledModel, tier: Tier, *, is_background: bool = False, is_idle: bool = False
    ) -> LoadedGraph: ...
    def hold_idle(self, is_held: bool) -> None: ...
    async def sizes(self, graph: LoadedGraph) -> ModelSizes: ...
    async def start(
        self, installed: InstalledModel, graph: LoadedGraph, sizes: ModelSizes, codec: TextCodec | None
    ) -> ServedModel: ...
    async def end(self, served: ServedModel) -> None: ...
    async def release(self, graph: LoadedGraph) -> None: ...
    async def verify(self, graph: LoadedGraph) -> None: ...
    async def invalidate(self, graph: LoadedGraph, reason: str) -> None: ...
    async def finish(self) -> None: ...
    async def close(self) -> None: ...


class Loaded(Struct, frozen=False):
    """The engines of one tier and how many requests they have."""

    served: ServedModel
    users: int = 0


class Place(Struct, frozen=False):
    """One loaded version. The lease keeps its files: an engine that is started again opens them anew."""

    installed: InstalledModel
    lease: Lease
    loaded: Loaded
    used_at_s: Seconds
    is_pinned: bool = False
    tokens: deque[tuple[Seconds, int]] = field(factory=deque)
    changing: asyncio.Task[None] | None = None
    retry_at_s: Seconds = 0.0
    verified_at_s: Seconds = 0.0
    """When the bytes of its graph were last hashed, on the monotonic clock."""

    @property
    def is_changing(self) -> bool:
        return self.changing is not None and not self.changing.done()


Key = tuple[str, str]
