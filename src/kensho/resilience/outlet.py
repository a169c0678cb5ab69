"""Tokens on their way from an engine to their reader, who may be slow, or never come.

The engine's side never waits: when `is_full`, it stops the engine, gives back its slot, and goes on after `drained`.
Thus a reader who does not read costs the memory of `limit` ids and nobody's time.
"""

import asyncio
from collections import deque


class Outlet:
    """One writer and one reader on one event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._ids: deque[int] = deque()
        self._is_ended = False
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    @property
    def is_full(self) -> bool:
        return len(self._ids) >= self._limit

    def put(self, token: int) -> None:
        self._ids.append(token)
        _wake(self._reader)

    def end(self, error: BaseException | None) -> None:
        """No more tokens. The reader gets those before, then `error`, or (None) the end."""
        self._is_ended, self._error = True, error
        _wake(self._reader)

    async def get(self) -> int | None:
        """The next token; None at the end. Raises what `end` was given."""
        while not self._ids:
            if self._is_ended:
                if self._error:
                    raise self._error
                return None
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        token = self._ids.popleft()
        if not self._ids:
            _wake(self._writer)
        return token

    async def drained(self) -> None:
        """Returns when everything was read."""
        while self._ids:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
