"""Sending HTTP answers over ASGI: JSON, errors, server-sent events. Bodies are JSON by msgspec."""

from collections.abc import Mapping

import msgspec
from starlette.types import Send

from kensho.server.openai_errors import Problem

JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"


async def send_json(send: Send, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
    """A whole answer."""
    data = msgspec.json.encode(body)
    await begin(send, status, {"content-type": JSON, "content-length": str(len(data)), **(headers or {})})
    await send({"type": "http.response.body", "body": data})


async def send_problem(send: Send, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
    """An answer that is an error."""
    await send_json(send, problem.status, problem.body(), {**(headers or {}), **problem.headers})


async def begin(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Status and headers. Nothing here is for a cache."""
    pairs = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
    pairs.append((b"cache-control", b"no-store"))
    await send({"type": "http.response.start", "status": status, "headers": pairs})


def event(data: object) -> bytes:
    """One server-sent event without a name: clients of OpenAI's API take no other."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


DONE = b"data: [DONE]\n\n"
