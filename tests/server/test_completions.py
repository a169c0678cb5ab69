"""Answers over HTTP: shapes, errors, stops, clients that go away or do not read. Scripted answers, virtual time."""

import asyncio
from typing import Any

import pytest
from scripted_http import TOKEN_S, Client, ScriptedApp

from kensho.base.errors import (
    CompileFailed,
    ConfigError,
    Damaged,
    DeadlineMissed,
    EngineCrashed,
    EngineError,
    KenshoError,
    ModelError,
    NotEnoughMemory,
    NotInstalled,
    Overloaded,
    TrustError,
)
from kensho.base.events import ErrorRaised
from kensho.server import completions, reply
from kensho.testing.loop import run_virtual

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}]}
FIGURES = {
    "model": "demo", "version": "1.0.0", "engine": "primary", "tier": "mapped", "failovers": 1, "gap_ms": 12.0,
    "first_token_ms": 250.0, "tokens_per_second": 80.0, "is_fallback_model": True, "reason": "demo: it was asked for",
}  # fmt: skip


def ask(app: ScriptedApp, fields: dict[str, Any] | None = None, **headers: str) -> Client:
    return run_virtual(Client(app).request("POST", CHAT, ASKED | (fields or {}), **headers))


def test_a_whole_answer_has_the_shape_the_figures_and_the_headers() -> None:
    client = ask(ScriptedApp())
    assert client.status == 200 and client.is_complete
    assert client.headers["x-request-id"].startswith("req_")
    assert client.headers["x-kensho-engine"] == "primary"
    assert client.headers["x-kensho-model-version"] == "1.0.0"
    assert client.headers["content-type"] == "application/json"
    answer = client.json
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer == {
        "object": "chat.completion",
        "created": 1_800_000_000,
        "model": "demo",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Bonjour.", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        "kensho": FIGURES,
    }


def test_a_stream_has_one_chunk_a_piece_and_ends_with_the_figures_and_done() -> None:
    client = ask(ScriptedApp(), {"stream": True})
    assert client.headers["content-type"].startswith("text/event-stream")
    assert client.headers["x-kensho-engine"] == "primary" and "content-length" not in client.headers
    *chunks, done = client.events
    assert done == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert [delta["content"] for delta in deltas[1:-1]] == ["Bon", "jour", "."]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert [chunk.get("kensho") for chunk in chunks] == [None] * 4 + [FIGURES]
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_ends_a_stream_that_asked_for_it() -> None:
    *chunks, last, done = ask(ScriptedApp(), {"stream": True, "stream_options": {"include_usage": True}}).events
    assert done == "[DONE]"
    assert last["choices"] == [] and last["usage"]["total_tokens"] == 10 and last["kensho"] == FIGURES
    assert all(chunk["usage"] is None and "kensho" not in chunk for chunk in chunks)


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_stop_string_ends_the_answer_and_the_engine(is_stream: bool) -> None:
    app = ScriptedApp(["one", " E", "N", "D two", " three"])
    client = ask(app, {"stop": ["END"], "stream": is_stream})
    if is_stream:
        choices = [chunk["choices"][0] for chunk in client.events[:-1]]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert choices[-1]["finish_reason"] == "stop"
    else:
        text = client.json["choices"][0]["message"]["content"]
        assert client.json["choices"][0]["finish_reason"] == "stop"
        assert client.json["usage"]["completion_tokens"] == 4
    assert text == "one "
    assert app.running == 0


def test_max_tokens_ends_with_length_and_an_empty_answer_is_an_answer() -> None:
    assert ask(ScriptedApp(), {"max_tokens": 2}).json["choices"][0]["finish_reason"] == "length"
    empty = ask(ScriptedApp([]), {"stream": True}).events
    assert [chunk["choices"][0]["finish_reason"] for chunk in empty[:-1]] == [None, "stop"]


def test_what_was_asked_reaches_the_application() -> None:
    app = ScriptedApp()
    ask(app, {"temperature": 0.5, "max_tokens": 9}, x_kensho_priority="low", x_kensho_deadline_ms="1500")
    ask(app, {"seed": -1, "temperature": 0.5, "priority": "critical", "deadline_ms": 20, "engine": "standby"})
    ask(app)
    (model, prompt, drawn), (_, _, given), (_, _, greedy) = app.asked
    assert (model, prompt) == ("demo", [{"role": "user", "content": "Hello"}])
    assert (drawn.temperature, drawn.max_tokens, drawn.priority, drawn.deadline_s) == (0.5, 9, "low", 1.5)
    assert (drawn.seed, given.seed, greedy.seed) == (42, (1 << 64) - 1, 0)
    assert (given.priority, given.deadline_s, given.is_raw_prompt) == ("critical", 0.02, False)
    assert (greedy.priority, greedy.deadline_s, greedy.engine) == ("normal", None, None)
    assert given.engine == "standby"
    assert (drawn.is_whole, given.is_whole, greedy.is_whole) == (True, True, False)


def test_a_completion_goes_on_with_the_text_as_it_is() -> None:
    app = ScriptedApp()
    body = {"model": "demo", "prompt": "Once", "max_tokens": 2}
    whole = run_virtual(Client(app).request("POST", "/v1/completions", body))
    assert (whole.json["object"], whole.json["choices"][0]["text"]) == ("text_completion", "Bonjour")
    assert whole.json["id"].startswith("cmpl-") and whole.json["kensho"] == FIGURES
    stream = run_virtual(Client(app).request("POST", "/v1/completions", body | {"stream": True}))
    assert [chunk["choices"][0]["text"] for chunk in stream.events[:-1]] == ["Bon", "jour", ""]
    assert app.asked[0][1] == "Once" and app.asked[0][2].is_raw_prompt


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (NotInstalled("no such model"), 404, "invalid_request_error", "model_not_found"),
        (ConfigError("too long"), 400, "invalid_request_error", "config"),
        (NotEnoughMemory("no room"), 503, "overloaded_error", "not_enough_memory"),
        (Damaged("bytes"), 503, "storage_error", "damaged"),
        (TrustError("signature"), 500, "trust_error", "trust_refused"),
        (ModelError("template"), 500, "server_error", "not_a_model"),
    ],
)
def test_an_error_before_the_first_token_has_its_own_status(
    error: KenshoError, status: int, kind: str, code: str
) -> None:
    for is_stream in (False, True):
        client = ask(ScriptedApp([], error), {"stream": is_stream})
        assert client.status == status
        assert client.json == {"error": {"message": str(error), "type": kind, "param": None, "code": code}}
        assert "x-request-id" in client.headers and "retry-after" not in client.headers


@pytest.mark.parametrize(
    ("error", "words", "after"),
    [
        (EngineCrashed("process 7 is gone", advice="see `kensho status`"), "the log has more", None),
        (CompileFailed("no"), "the log has more", None),
        (EngineError("primary is OPEN", retry_after_s=6.5), "come back in 7 s", "7"),
    ],
)
@pytest.mark.parametrize("pieces", [(), ("Bon",)])
def test_what_goes_on_in_the_engines_is_for_the_log(
    error: EngineError, words: str, after: str | None, pieces: tuple[str, ...]
) -> None:
    app = ScriptedApp(pieces, error)
    client = ask(app, {"stream": True})
    told = (client.events[-1] if pieces else client.json)["error"]
    assert (told["message"], told["code"]) == (f"no engine could answer; {words}", error.code)
    assert client.status == (200 if pieces else 502)
    assert pieces or client.headers.get("retry-after") == after
    (event,) = app.events
    assert isinstance(event, ErrorRaised)
    assert event.reason == f"{client.headers['x-request-id']}: {error.message}"


@pytest.mark.parametrize("name", ["meta/llama", "", "con", "m" * 100])
def test_a_name_that_no_model_can_have_is_the_name_of_none(name: str) -> None:
    client = ask(ScriptedApp(), {"model": name})
    assert (client.status, client.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("kind", [Overloaded, DeadlineMissed])
def test_a_refusal_says_when_to_come_back(kind: type[Overloaded]) -> None:
    client = ask(ScriptedApp([], kind("busy", retry_after_s=1.25)))
    assert client.status == 503
    assert (client.headers["retry-after"], client.headers["retry-after-ms"]) == ("2", "1250")


def test_engines_that_are_all_out_say_when_to_come_back_if_they_know_it() -> None:
    client = ask(ScriptedApp([], EngineError("no answer: no engine can take it now", retry_after_s=42.4)))
    assert (client.status, client.headers["retry-after"]) == (502, "43")


def test_a_deadline_of_the_client_s_own_is_not_tried_again_by_itself() -> None:
    app = ScriptedApp([], DeadlineMissed("late", retry_after_s=2.0))
    assert "x-should-retry" not in ask(app).headers
    own = ask(app, {"deadline_ms": 50}).headers
    assert (own["x-should-retry"], own["retry-after"]) == ("false", "2")
    busy = ask(ScriptedApp([], Overloaded("full", retry_after_s=2.0)), {"deadline_ms": 50})
    assert "x-should-retry" not in busy.headers


def test_an_error_in_the_middle_is_the_last_event() -> None:
    client = ask(ScriptedApp(["Bon"], EngineCrashed("gone", advice="ask again")), {"stream": True})
    assert client.status == 200 and client.is_complete
    assert client.events[1]["choices"][0]["delta"]["content"] == "Bon"
    assert client.events[-1]["error"]["code"] == "engine_crashed"


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("after_s", [0.05, 0.15])
def test_who_waits_when_the_daemon_stops_is_told_so(is_stream: bool, after_s: float) -> None:
    app = ScriptedApp()

    async def main() -> Client:
        client = Client(app)
        asking = asyncio.create_task(client.request("POST", CHAT, ASKED | {"stream": is_stream}))
        await asyncio.sleep(after_s)
        asking.cancel()
        await asking
        return client

    client = run_virtual(main())
    assert client.is_complete and app.running == 0 and client.aborted == 0
    if is_stream and after_s > TOKEN_S:
        assert client.status == 200
        assert client.events[1]["choices"][0]["delta"]["content"] == "Bon"
        assert client.events[-1]["error"]["code"] == "stopping"
    else:
        assert (client.status, client.json["error"]["code"]) == (503, "stopping")
        assert int(client.headers["retry-after"]) >= 1 and client.headers["x-request-id"]


def test_a_stop_in_the_middle_of_a_whole_answer_cuts_it() -> None:
    async def main() -> Client:
        client = Client(ScriptedApp(), takes_s=1.0)
        asking = asyncio.create_task(client.request("POST", CHAT, ASKED))
        await asyncio.sleep(1.5)  # its head was sent
        asking.cancel()
        await asking
        return client

    client = run_virtual(main())
    assert (client.status, client.is_complete, client.aborted) == (200, False, 1)


def test_a_fault_of_kensho_is_told_without_its_words_and_logged() -> None:
    app = ScriptedApp([], RuntimeError("secret prompt"))
    client = ask(app)
    assert client.status == 500 and b"secret" not in client.body
    (event,) = app.events
    assert isinstance(event, ErrorRaised) and event.reason == "RuntimeError" and event.frames


def test_a_bad_request_names_the_field() -> None:
    client = ask(ScriptedApp(), {"temperature": "hot"})
    assert client.status == 400
    error = client.json["error"]
    assert (error["param"], error["type"], error["code"]) == ("temperature", "invalid_request_error", "invalid_request")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_goes_away_frees_its_engine_at_once(is_stream: bool) -> None:
    app = ScriptedApp(["x"] * 1000)

    async def main() -> float:
        now_s = asyncio.get_running_loop().time
        began_s = now_s()
        client = await Client(app, gone_after_s=0.55).request("POST", CHAT, ASKED | {"stream": is_stream})
        assert not client.is_complete
        return now_s() - began_s

    assert run_virtual(main()) == pytest.approx(0.55)
    assert app.running == 0


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_does_not_read_is_cut_off_and_frees_its_engine(is_stream: bool) -> None:
    app = ScriptedApp(["x"] * 50)

    async def main() -> Client:
        client = Client(app, takes_s=10_000)
        async with asyncio.timeout(reply.SEND_S + 10):
            await client.request("POST", CHAT, ASKED | {"stream": is_stream})
        return client

    assert run_virtual(main()).aborted == 1
    assert app.running == 0


def test_a_client_that_reads_slowly_does_not_hold_the_engine_and_gets_all_of_it() -> None:
    app = ScriptedApp([f"{number} " for number in range(500)])

    async def main() -> Client:
        client = Client(app, takes_s=3.0)
        asking = asyncio.create_task(client.request("POST", CHAT, ASKED | {"stream": True}))
        await asyncio.sleep(500 * TOKEN_S + 1.0)
        assert app.running == 0 and not client.is_complete
        await asking
        return client

    *chunks, done = run_virtual(main()).events
    assert done == "[DONE]" and len(chunks) < 300
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == "".join(app.pieces)


def test_a_body_comes_in_pieces_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_virtual(Client(ScriptedApp()).request("POST", CHAT, ASKED, pieces=7)).status == 200
    monkeypatch.setattr(completions, "MAX_BODY_BYTES", 1000)
    big = b" " * 1001
    stated = run_virtual(Client(ScriptedApp()).request("POST", CHAT, b"", content_length="1001"))
    sent = run_virtual(Client(ScriptedApp()).request("POST", CHAT, big, pieces=3))
    for client in (stated, sent):
        assert client.status == 413 and client.json["error"]["code"] == "body_too_large"


def test_a_body_that_does_not_come_is_not_waited_for_without_end() -> None:
    class Slow(Client):
        async def request(self, *args: Any, **named: Any) -> "Client":
            async def receive() -> Any:
                await asyncio.sleep(10_000)

            scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(b"host", b"localhost")],
                     "query_string": b"", "root_path": "", "scheme": "http", "client": None}  # fmt: skip
            await self._asgi(scope, receive, self._take)  # type: ignore[arg-type]
            return self

    client = run_virtual(Slow(ScriptedApp()).request())
    assert client.status == 408
