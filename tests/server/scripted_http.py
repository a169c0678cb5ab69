"""An application that answers by a script, and a client that speaks ASGI to it: no socket, no thread, virtual time."""

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any, cast

from kensho.app import AnswerRecord, GenerateOptions, Kensho, Token
from kensho.app.answers import Prompt
from kensho.base.events import Event
from kensho.base.ids import check_name
from kensho.server.http_app import make_http_app
from kensho.testing.clock import VirtualClock

TOKEN_S = 0.1


class ScriptedAnswer:
    """Stands for an `AnswerStream`: its pieces, then `error` if there is one."""

    def __init__(self, app: "ScriptedApp", options: GenerateOptions) -> None:
        self._app = app
        self._options = options
        self._ids: list[int] = []
        self._tokens = self._run()

    def __aiter__(self) -> AsyncGenerator[Token, None]:
        return self._tokens

    async def aclose(self) -> None:
        await self._tokens.aclose()

    @property
    def so_far(self) -> AnswerRecord:
        return AnswerRecord(
            model="demo", version="1.0.0", text="", token_ids=tuple(self._ids), load_source="memory", load_seconds=0.0,
            first_token_seconds=0.25, tokens_per_second=80.0, engine="primary", tier="mapped", failovers=1, gap_ms=12.0,
            is_fallback_model=True, reason="demo: it was asked for", prompt_tokens=7,
            finish="length" if len(self._ids) >= self._options.max_tokens else "stop",
        )  # fmt: skip

    async def _run(self) -> AsyncGenerator[Token, None]:
        self._app.running += 1
        try:
            for number, piece in enumerate(self._app.pieces[: self._options.max_tokens]):
                await asyncio.sleep(TOKEN_S)
                self._ids.append(number)
                yield Token(number, piece)
            if self._app.error:
                raise self._app.error
        finally:
            self._app.running -= 1


class ScriptedApp:
    """Stands for `Kensho`, as far as answering goes."""

    def __init__(self, pieces: Sequence[str] = ("Bon", "jour", "."), error: Exception | None = None) -> None:
        self.pieces = pieces
        self.error = error
        self.running = 0
        self.asked: list[tuple[str, Prompt, GenerateOptions]] = []
        self.events: list[Event] = []

    def generate(self, model: str, prompt: Prompt, options: GenerateOptions) -> ScriptedAnswer:
        check_name(model, "model name")
        self.asked.append((model, prompt, options))
        return ScriptedAnswer(self, options)

    def emit(self, event: Event) -> None:
        self.events.append(event)


class Client:
    """One connection. `takes_s`: how long it takes in each message. `gone_after_s`: when it goes away."""

    def __init__(self, app: ScriptedApp, *, takes_s: float = 0.0, gone_after_s: float | None = None) -> None:
        self._takes_s = takes_s
        self._gone_after_s = gone_after_s
        self.aborted = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False
        counter = iter(range(1000))
        self._asgi = make_http_app(
            cast(Kensho, app),
            names=["localhost", "kiosk-7"],
            token=lambda: f"{next(counter):04d}",
            draw_seed=lambda: 42,
            abort=lambda scope: self._abort(),
            clock=VirtualClock(wall_s=1_800_000_000),
        )

    async def request(
        self, method: str, path: str, body: bytes | dict[str, Any] = b"", *, pieces: int = 1, **headers: str
    ) -> "Client":
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        given = {"host": "localhost:8420", **{name.replace("_", "-"): value for name, value in headers.items()}}
        size = max(1, -(-len(data) // pieces))
        parts = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
        scope = {
            "type": "http", "method": method, "path": path, "query_string": b"", "root_path": "", "scheme": "http",
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in given.items() if value],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8420), "asgi": {"version": "3.0"},
        }  # fmt: skip
        sent = iter(range(len(parts)))

        async def receive() -> dict[str, object]:
            index = next(sent, None)
            if index is not None:
                return {"type": "http.request", "body": parts[index], "more_body": index + 1 < len(parts)}
            await asyncio.sleep(self._gone_after_s if self._gone_after_s is not None else 10_000)
            return {"type": "http.disconnect"}

        await self._asgi(scope, receive, self._take)
        return self

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """What the stream said; `[DONE]` as text."""
        lines = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]

    async def _take(self, message: Any) -> None:
        await asyncio.sleep(self._takes_s)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]
            self.is_complete = not message.get("more_body", False)

    def _abort(self) -> None:
        self.aborted += 1
