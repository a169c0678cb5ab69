"""What an application that stays does beside answering: it reads every byte again (row D4), and loads models before
anybody asks (row R6)."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from kensho.app.deliveries import Deliveries
from kensho.base.clock import Clock
from kensho.base.events import Emit, Event
from kensho.settings import Settings

if TYPE_CHECKING:
    from kensho.app.serving import Serving
    from kensho.app.shelf import StoreShelf

Listen = Callable[[Callable[[Event], None]], Callable[[], None]]


class Background:
    """Used from one event loop. What nobody has asked for is not begun, and not imported."""

    def __init__(
        self,
        settings: Settings,
        deliveries: Deliveries,
        *,
        shelf: "Callable[[], StoreShelf]",
        serve: "Callable[[], Serving]",
        listen: Listen,
        clock: Clock,
        emit: Emit,
    ) -> None:
        """`shelf` and `serve` are called when a model is to be warmed; `listen` lets it hear every event."""
        self._settings = settings
        self._deliveries = deliveries
        self._shelf = shelf
        self._serve = serve
        self._listen = listen
        self._clock = clock
        self._emit = emit
        self._scrubbing: asyncio.Task[None] | None = None
        self._warming: asyncio.Task[None] | None = None

    def begin(self) -> None:
        if self._settings.scrub:
            from kensho.app.scrubbing import scrub_for_ever

            self._scrubbing = asyncio.create_task(scrub_for_ever(self._deliveries, self._emit))
        if self._settings.warm or self._settings.warm_up:
            self._warming = asyncio.create_task(self._warm_up())

    async def end_warming(self) -> None:
        """Nothing more is loaded. Idempotent."""
        warming, self._warming = self._warming, None
        if warming is not None:
            warming.cancel()
            await _end_of(warming)

    def stop_scrubbing(self) -> None:
        """Begin to end it. Idempotent."""
        if self._scrubbing is not None:
            self._scrubbing.cancel()

    async def end_scrubbing(self) -> None:
        """Returns after its last slice, or the end of a repair: the store must be open until then. Idempotent."""
        self.stop_scrubbing()
        scrubbing, self._scrubbing = self._scrubbing, None
        if scrubbing is not None:
            await _end_of(scrubbing)

    async def _warm_up(self) -> None:
        from kensho.app.warmer import BEGIN_S, Warmer

        await asyncio.sleep(BEGIN_S)
        named, is_guessing = self._settings.warm, self._settings.warm_up
        warmer = Warmer(
            self._shelf(), self._serve(), named=named, is_guessing=is_guessing, clock=self._clock, emit=self._emit
        )
        end_listening = self._listen(warmer.hear)
        try:
            await warmer.run()
        finally:
            end_listening()


async def _end_of(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()  # it never ends by itself, but by a fault in Kensho: not hidden
