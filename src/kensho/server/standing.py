"""How a daemon stands: what the store recorded, and what is loaded in this process now."""

import asyncio

from kensho.app import Kensho
from kensho.app.activity import LoadedModel
from kensho.app.status import Status, with_overload


async def standing(app: Kensho) -> tuple[Status, list[LoadedModel]]:
    """The status of an application that stays, and what is loaded. Looking counts as no use of anything."""
    status = await asyncio.to_thread(app.status)
    loaded = app.loaded()
    return with_overload(status, [model.model for model in loaded if model.level == "SATURATED"]), loaded
