"""POST /v1/chat/completions and /v1/completions: one request, one answer, whole or as a stream.

Rules: (1) an error before the first token has its own status; one after it is an event of the stream, which then ends;
(2) a client that goes away frees its engine within one step, and one that reads slowly does not hold it; one that does
not read for a while is cut off (`reply`); (3) at most MAX_BODY_BYTES are taken in, within BODY_S; (4) who waits when
the daemon stops is told so.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing

from starlette.types import Receive, Scope, Send

from kensho.app import AnswerRecord, AnswerStream, GenerateOptions, Kensho
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import DeadlineMissed, KenshoError, NotInstalled, UsageError
from kensho.base.events import ErrorRaised
from kensho.server.openai_errors import NO_ENGINE, Problem, problem_of
from kensho.server.openai_reply import Finish, ReplyShape
from kensho.server.openai_request import Asked
from kensho.server.reply import Gone, Reply
from kensho.server.stop_strings import StopScanner
from kensho.telemetry.record import frames_of

MAX_BODY_BYTES = 10_000_000
BODY_S: Seconds = 30.0
"""A client that has not sent its request by then is told so (guess: ten megabytes over a slow link)."""

BACKLOG = 256
"""Pieces that wait for a client before they are sent together (guess)."""

_STOPPING = Problem(
    503,
    "the daemon is stopping; ask again when it is back",
    "server_error",
    "stopping",
    headers={"retry-after": "5"},  # guess: a restart
)

Parse = Callable[[bytes, Mapping[str, str]], Asked]


class Completions:
    """An ASGI application for one of the two paths."""

    def __init__(
        self,
        app: Kensho,
        parse: Parse,
        *,
        is_chat: bool,
        token: Callable[[], str],
        draw_seed: Callable[[], int],
        abort: Callable[[Scope], None],
        clock: Clock,
    ) -> None:
        """`token` makes ids that are never the same, `draw_seed` seeds; `abort` cuts a request's connection."""
        self._app = app
        self._parse = parse
        self._is_chat = is_chat
        self._token = token
        self._draw_seed = draw_seed
        self._abort = abort
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        reply = Reply(send, f"req_{self._token()}", abort=lambda: self._abort(scope))
        asked: Asked | None = None
        try:
            asked = self._parse(await _read_body(receive, headers), headers)
            await _while_connected(receive, self._answer(asked, reply))
        except Gone:
            return
        except asyncio.CancelledError:  # the server's last word: see `HttpServer.close`
            await reply.problem(_STOPPING)
        except _Refused as refused:
            await reply.problem(refused.problem)
        except KenshoError as error:
            problem = problem_of(error)
            if problem.status == NO_ENGINE:
                self._app.emit(ErrorRaised(code=error.code, reason=f"{reply.request_id}: {error.message}", frames=()))
            if isinstance(error, DeadlineMissed) and asked and asked.deadline_s is not None:
                # The official clients would begin anew, when by their own words it is too late.
                problem.headers["x-should-retry"] = "false"
            await reply.problem(problem)
        except Exception as error:
            frames = frames_of(error.__traceback__)
            self._app.emit(ErrorRaised(code="server_error", reason=type(error).__name__, frames=frames))
            await reply.problem(Problem(500, "this is a fault in Kensho; its log has more", "server_error", "failure"))

    async def _answer(self, asked: Asked, reply: "Reply") -> None:
        seed = asked.seed if asked.seed is not None else self._draw_seed() if asked.temperature else 0
        options = GenerateOptions(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            seed=seed % (1 << 64),
            engine=asked.engine,
            priority=asked.priority,
            deadline_s=asked.deadline_s,
            # A deadline of the client's is for what it waits for. Ours are for the first token: an answer that may be
            # long and seldom is would be refused for its bound.
            is_whole=asked.deadline_s is not None and not asked.is_stream,
            is_raw_prompt=not self._is_chat,
        )
        shape = ReplyShape(
            self._is_chat,
            f"{'chatcmpl' if self._is_chat else 'cmpl'}-{self._token()}",
            int(self._clock.wall_s()),
            asked.model,
            asked.has_usage,
        )
        scan = StopScanner(asked.stops)
        try:
            answer = self._app.generate(asked.model, asked.prompt, options)
        except UsageError as error:  # a name that no model can have
            raise NotInstalled(f"model {asked.model[:80]!r} is not installed", advice="see /v1/models") from error
        async with aclosing(answer):
            pieces = _pieces(answer, scan)
            async with aclosing(pieces):
                if asked.is_stream:
                    await self._stream(pieces, answer, scan, shape, reply)
                    return
                text = "".join([piece async for piece in pieces])
        record = answer.so_far
        await reply.whole(shape.whole(text, record, _finish(record, scan)), record)

    async def _stream(
        self,
        pieces: AsyncGenerator[str, None],
        answer: AnswerStream,
        scan: StopScanner,
        shape: ReplyShape,
        reply: "Reply",
    ) -> None:
        first = await anext(pieces, "")  # who answers is known with the first token, and said in the headers
        # The engine goes at its own pace and is free when it is done, however slowly its words are read: what waits
        # is text, 200 KB at most.
        waiting, is_new = deque([first] if first else []), asyncio.Event()

        async def collect() -> None:
            async for piece in pieces:
                if piece:
                    waiting.append(piece)
                    is_new.set()

        collecting = asyncio.create_task(collect())
        collecting.add_done_callback(lambda _: is_new.set())
        try:
            await reply.begin(answer.so_far)
            for chunk in shape.first():
                await reply.event(chunk)
            while True:
                is_new.clear()
                is_over = collecting.done()
                if waiting:
                    await reply.event(shape.piece(_take(waiting)))
                elif is_over:
                    break
                else:
                    await is_new.wait()
            collecting.result()
        finally:
            collecting.cancel()
            await asyncio.gather(collecting, return_exceptions=True)
        record = answer.so_far
        for chunk in shape.last(record, _finish(record, scan)):
            await reply.event(chunk)
        await reply.end()


class _Refused(Exception):
    """The request was not read."""

    def __init__(self, status: int, message: str, code: str) -> None:
        self.problem = Problem(status, message, "invalid_request_error", code)


async def _pieces(answer: AnswerStream, scan: StopScanner) -> AsyncGenerator[str, None]:
    """The text as it may be shown; empty pieces too, since the first one tells that the answer has begun."""
    async for token in answer:
        yield scan.push(token.text)
        if scan.is_stopped:
            return
    rest = scan.finish()
    if rest:
        yield rest


def _take(waiting: deque[str]) -> str:
    """The next piece; all of them together where the client is behind."""
    if len(waiting) <= BACKLOG:
        return waiting.popleft()
    text = "".join(waiting)
    waiting.clear()
    return text


def _finish(record: AnswerRecord, scan: StopScanner) -> Finish:
    return "stop" if scan.is_stopped else record.finish


async def _read_body(receive: Receive, headers: Mapping[str, str]) -> bytes:
    stated = headers.get("content-length", "")
    too_large = _Refused(413, f"the body is larger than {MAX_BODY_BYTES} bytes", "body_too_large")
    if stated.isdigit() and int(stated) > MAX_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Gone
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise _Refused(408, f"the body did not come within {BODY_S:g} s", "body_too_slow") from None


async def _while_connected(receive: Receive, work: Coroutine[None, None, None]) -> None:
    """Do the work; end it as soon as the client is gone."""
    working, watching = asyncio.create_task(work), asyncio.create_task(_until_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Gone
        working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
