"""The scrub of an application that stays (row D4): every stored byte is read again, on a thread that yields to all."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

from kensho.app.deliveries import SCRUB_RETRY_S, Deliveries
from kensho.base.errors import KenshoError
from kensho.base.events import Emit, ScrubFailed
from kensho.delivery.scrub import lower_priority


async def scrub_for_ever(deliveries: Deliveries, emit: Emit) -> NoReturn:
    """Until it is cancelled; returns when the slice of that moment is over, so that the store is open until then."""
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, "scrub", initializer=lower_priority)
    try:
        while True:
            try:
                wait_s = await loop.run_in_executor(thread, deliveries.scrub)
            except KenshoError as error:  # the disk is away, say: it may come back, and this is the one who looks
                emit(ScrubFailed(reason=error.message, delay_s=SCRUB_RETRY_S))
                wait_s = SCRUB_RETRY_S
            await asyncio.sleep(wait_s)
    finally:
        await asyncio.to_thread(thread.shutdown)  # waits for the thread, not holding up the event loop
