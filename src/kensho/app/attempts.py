"""Which graphs a model is opened with: one after the other, until engines start with one (row R7).

| tier | first | if no engine starts with that |
|---|---|---|
| auto | the compiled graph if there is one, else the exact one, made in 0.1 s | the exact one; then one compiled anew |
| auto, in the background | the compiled graph, made if need be | one compiled anew |
| chosen by somebody | its graph, made if need be | made anew |

A graph from the cache that does not start, or answers otherwise than it did, is dropped before the next one is made.
What says nothing about the graph drops none and ends the attempts: no memory, and engines that may not be started.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from kensho.app.opening import ServedModel
from kensho.app.places import Opener, Places
from kensho.base.errors import CompileFailed, EngineError, EnginesOff, NotEnoughMemory
from kensho.delivery.store import InstalledModel
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.text.codec import TextCodec
from kensho.settings import TierChoice

_NOT_ITS_FAULT = (NotEnoughMemory, EnginesOff)


class Attempts:
    """Used from one event loop."""

    def __init__(self, opener: Opener, places: Places, *, tier: TierChoice) -> None:
        self._opener = opener
        self._places = places
        self._tier = tier

    async def open(
        self, installed: InstalledModel, *, is_background: bool = False, may_close: bool = True
    ) -> ServedModel:
        """Engines of the model. Raises ModelError, CompileFailed, and EngineError: the last attempt's."""
        why: EngineError | None = None
        async with aclosing(self._graphs(installed, is_background=is_background)) as graphs:
            async for graph in graphs:
                try:
                    return await self.start(installed, graph, may_close=may_close)
                except _NOT_ITS_FAULT:
                    raise
                except EngineError as error:
                    why = error
        assert why is not None  # noqa: S101  # there is a first graph, and it was given back or raised
        raise why

    async def start(
        self,
        installed: InstalledModel,
        graph: LoadedGraph,
        codec: TextCodec | None = None,
        *,
        is_giving_back: bool = False,
        may_close: bool = True,
    ) -> ServedModel:
        """Engines on this graph, which is theirs from now on. `is_giving_back`: no room is made first."""
        try:
            sizes = await self._opener.sizes(graph)
            if not is_giving_back:
                await self._places.make_room(installed.model, graph.tier, sizes, may_close=may_close)
        except BaseException:
            await self._opener.release(graph)
            raise
        try:
            return await self._opener.start(installed, graph, sizes, codec)
        except EngineError as error:
            if graph.source == "disk" and not isinstance(error, _NOT_ITS_FAULT):
                await self._opener.invalidate(graph, f"no engine starts with it: {error.message}")
            raise

    async def make(self, installed: InstalledModel, *, is_background: bool = False) -> LoadedGraph:
        """The graph of the tier, found or made; of auto the compiled one where that can be had."""
        if self._tier != "auto":
            return await self._opener.make(installed, self._tier, is_background=is_background)
        try:
            return await self._opener.make(installed, "mapped", is_background=is_background)
        except CompileFailed:
            # No int8 form answers well enough on this CPU (the event said so): the exact graph needs none.
            return await self._opener.make(installed, "raw")

    async def _graphs(self, installed: InstalledModel, *, is_background: bool) -> AsyncGenerator[LoadedGraph, None]:
        """As the table says; each is made when the one before it did not start."""
        if self._tier != "auto" or is_background:
            graph = await self.make(installed, is_background=is_background)
            yield graph
            if graph.source == "disk":
                yield await self.make(installed, is_background=is_background)
            return
        found = await self._opener.find(installed, "mapped")
        if found:
            yield found
        yield await self._opener.make(installed, "raw")
        yield await self._opener.make(installed, "mapped")
