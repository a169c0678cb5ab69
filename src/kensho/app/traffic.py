"""Who is being served, so that a model which is loaded on a guess never stands in anybody's way (row R6).

    traffic = Traffic(hold=compiler.hold_idle)
    with traffic.of(model): ...                 # a request, from its arrival to its end
    with traffic.guess(model):                  # the one model that is being warmed
        await traffic.run_when_quiet(load)    # starts when nobody is served, is cancelled when somebody comes

Requests for the very model that is being warmed are no disturbance: what is done is done for them.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Traffic:
    """Used from one event loop. `hold` is told whether idle work must stop, each time that this changes."""

    def __init__(self, hold: Callable[[bool], None]) -> None:
        self._hold = hold
        self._served: Counter[str] = Counter()
        self._guess: str | None = None
        self._is_noisy = False
        self._noise = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()

    @contextmanager
    def of(self, model: str) -> Iterator[None]:
        """Somebody waits for this model, or is being answered by it."""
        self._served[model] += 1
        self._mind()
        try:
            yield
        finally:
            self._served[model] -= 1
            self._served += Counter()  # drops what is zero
            self._mind()

    @contextmanager
    def guess(self, model: str) -> Iterator[None]:
        """This model is being warmed; one at a time."""
        self._guess = model
        self._mind()
        try:
            yield
        finally:
            self._guess = None
            self._mind()

    async def run_when_quiet(self, work: Callable[[], Coroutine[object, object, T]]) -> T:
        """The result of `work`, begun when nobody is served, and begun anew each time that it was interrupted."""
        while True:
            await self._quiet.wait()
            working, noise = asyncio.ensure_future(work()), asyncio.ensure_future(self._noise.wait())
            try:
                await asyncio.wait({working, noise}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                noise.cancel()
                if not working.done():
                    working.cancel()
                await asyncio.wait({working, noise})
            if not working.cancelled():
                return working.result()

    def _mind(self) -> None:
        is_noisy = self._guess is not None and any(model != self._guess for model in self._served)
        if is_noisy == self._is_noisy:
            return
        self._is_noisy = is_noisy
        self._hold(is_noisy)
        came, went = (self._noise, self._quiet) if is_noisy else (self._quiet, self._noise)
        came.set()
        went.clear()
