"""One HTTP answer on its way: whole, as a stream of events, or as an error; never waiting long for its client."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Literal

from starlette.types import Message, Send

from kensho.app import AnswerRecord
from kensho.base.clock import Seconds
from kensho.server.openai_errors import Problem
from kensho.server.responses import DONE, EVENTS, begin, event, send_json, send_problem

SEND_S: Seconds = 10.0
"""A client that takes in nothing for so long is taken for gone (guess)."""


class Gone(Exception):
    """Nobody reads any more."""


class Reply:
    """What goes back to one client."""

    def __init__(self, send: Send, request_id: str, *, abort: Callable[[], None]) -> None:
        """`abort` cuts the connection."""
        self.request_id = request_id
        self._send = send
        self._headers = {"x-request-id": request_id}
        self._abort = abort
        self._begun: Literal["", "stream", "whole"] = ""

    async def whole(self, body: Mapping[str, object], record: AnswerRecord) -> None:
        self._begun = "whole"
        await send_json(self._timely, 200, body, self._headers | _about(record))

    async def begin(self, record: AnswerRecord) -> None:
        self._begun = "stream"
        await begin(self._timely, 200, {"content-type": EVENTS, **self._headers, **_about(record)})

    async def event(self, chunk: Mapping[str, object]) -> None:
        await self._timely({"type": "http.response.body", "body": event(chunk), "more_body": True})

    async def end(self) -> None:
        await self._timely({"type": "http.response.body", "body": DONE})

    async def problem(self, problem: Problem) -> None:
        """As an answer of its own, or as the last event of a stream that has begun. In the middle of a whole answer
        there is no place for it: the connection is cut."""
        if self._begun == "stream":
            await self._timely({"type": "http.response.body", "body": event(problem.body())})
        elif self._begun == "whole":
            self._abort()
        else:
            await send_problem(self._timely, problem, self._headers)

    async def _timely(self, message: Message) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await self._send(message)
        except TimeoutError:
            self._abort()
            raise Gone from None


def _about(record: AnswerRecord) -> dict[str, str]:
    return {"x-kensho-engine": record.engine, "x-kensho-model-version": record.version}
