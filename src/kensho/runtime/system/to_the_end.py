"""Await something that must be finished before anybody may leave: reaping a killed process takes milliseconds.

A task can be cancelled more than once (its owner, then the loop's end), and the second cancellation hits the clean-up
of the first.
"""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[object, object, T]) -> T:
    """The result of `work`, which must be bounded in time. Cancellations wait for its end and are then raised."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and not task.cancelled():
        raise cancelled
    return task.result()
