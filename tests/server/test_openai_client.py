"""The official `openai` package as a client: what it sends is understood, what it reads is what it expects."""

import contextlib
import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

import openai
import psutil
import pytest
from daemon_process import QUESTION, Daemon, make_store, running

pytestmark = pytest.mark.real

ASKED = [{"role": "user", "content": QUESTION.question}]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("openai")
    config = folder / "kensho.toml"
    config.write_text('[tasks]\nchat = ["absent", "demo"]\ndraw = ["absent"]\n')
    options = ["--allow-faults", "--names", "kiosk-7,kiosk-8", "--config", str(config)]
    with running(make_store(folder), *options) as started:
        assert started.kensho("warm", "demo").returncode == 0
        yield started


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def chat(client: openai.OpenAI, **named: object) -> object:
    return client.chat.completions.create(model="demo", messages=ASKED, **named)  # type: ignore[call-overload]


def test_models_are_listed_and_found(client: openai.OpenAI) -> None:
    model, task = client.models.list().data
    assert task.id == "chat" and task.model_extra["kensho"]["answering"] == "demo"  # type: ignore[index]
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "kensho")
    assert 0 <= time.time() - model.created < 86400
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("absent")
    assert caught.value.code == "model_not_found"


def test_who_takes_a_task_from_the_list_gets_an_answer_and_is_told_whose(client: openai.OpenAI) -> None:
    (*_, task) = client.models.list().data
    answer = client.chat.completions.create(model=task.id, messages=ASKED)  # type: ignore[arg-type]
    assert (answer.model, answer.choices[0].message.content) == ("chat", QUESTION.answer)
    assert answer.model_extra["kensho"]["model"] == "demo"  # type: ignore[index]


def test_a_chat_has_its_answer_its_usage_and_who_answered(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=ASKED)  # type: ignore[arg-type]
    answer = raw.parse()
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (QUESTION.answer, "assistant", "stop")
    assert answer.usage is not None and answer.usage.completion_tokens > 10
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    about = answer.model_extra["kensho"]  # type: ignore[index]
    assert (about["version"], about["failovers"]) == ("1.0.0", 0)
    assert raw.headers["x-kensho-engine"] == about["engine"]
    assert raw.headers["x-kensho-model-version"] == "1.0.0"
    assert answer._request_id == raw.headers["x-request-id"]


def test_a_stream_comes_in_pieces_and_ends_with_its_figures(client: openai.OpenAI) -> None:
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == QUESTION.answer
    assert len(chunks) > 10
    assert chunks[-1].usage.completion_tokens > 10 and chunks[-1].model_extra["kensho"]["engine"] == "primary"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "stop"


def test_limits_stops_and_seeds_do_what_they_say(client: openai.OpenAI) -> None:
    short = chat(client, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3  # type: ignore[attr-defined]
    word = QUESTION.answer.split()[3]
    stopped = chat(client, stop=[word])
    assert stopped.choices[0].message.content == QUESTION.answer.partition(word)[0]  # type: ignore[attr-defined]
    drawn = [chat(client, temperature=5, seed=seed, max_tokens=30) for seed in (1, 1, 2, 3)]  # a very sure model
    texts = [answer.choices[0].message.content for answer in drawn]  # type: ignore[attr-defined]
    assert texts[0] == texts[1] and len(set(texts)) > 1


def test_a_conversation_is_more_than_its_last_question(client: openai.OpenAI) -> None:
    messages = [*ASKED, {"role": "assistant", "content": QUESTION.answer}, {"role": "user", "content": "More."}]
    long = client.chat.completions.create(model="demo", messages=messages, max_tokens=5)  # type: ignore[arg-type]
    short = client.chat.completions.create(model="demo", messages=messages[-1:], max_tokens=5)  # type: ignore[arg-type]
    assert long.usage and short.usage and long.usage.prompt_tokens > short.usage.prompt_tokens + 20


def test_a_completion_goes_on_with_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="Kensho", max_tokens=4)
    assert answer.object == "text_completion" and answer.usage and answer.usage.completion_tokens == 4
    pieces = [
        chunk.choices[0].text
        for chunk in client.completions.create(model="demo", prompt="Kensho", max_tokens=4, stream=True)
    ]
    assert "".join(pieces) == answer.choices[0].text


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as absent:
        client.chat.completions.create(model="absent", messages=ASKED)  # type: ignore[arg-type]
    assert absent.value.code == "model_not_found" and absent.value.request_id
    with pytest.raises(openai.BadRequestError) as two:
        chat(client, n=2)
    assert two.value.param == "n"
    with pytest.raises(openai.BadRequestError, match="context"):
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "word " * 5000}])
    with pytest.raises(openai.APIStatusError) as large:
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "x" * 10_000_001}])
    assert large.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="1 ms"):
        chat(client, extra_headers={"X-Kensho-Deadline-Ms": "0.001"})
    with pytest.raises(openai.BadRequestError) as unknown:
        chat(client, extra_body={"engine": "quantum"})
    assert unknown.value.param == "engine"


def test_a_deadline_that_was_missed_is_not_tried_again(daemon: Daemon) -> None:
    log = daemon.store / "logs" / "kensho.jsonl"
    before = log.stat().st_size
    eager = openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=2)
    with eager, pytest.raises(openai.InternalServerError) as late:
        chat(eager, extra_body={"deadline_ms": 1})
    assert late.value.status_code == 503 and int(late.value.response.headers["retry-after"]) >= 1
    names = [json.loads(line)["event.name"] for line in log.read_bytes()[before:].splitlines()]
    outcomes = ("kensho.resilience.queue.rejected", "kensho.resilience.request.finished")
    assert sum(name in outcomes for name in names) == 1


def test_the_engine_can_be_named(client: openai.OpenAI) -> None:
    answer = chat(client, extra_body={"engine": "standby"})
    assert answer.choices[0].message.content == QUESTION.answer  # type: ignore[attr-defined]
    assert answer.model_extra["kensho"]["engine"] == "standby"  # type: ignore[attr-defined]


def test_leaving_a_stream_frees_the_engine(daemon: Daemon, client: openai.OpenAI) -> None:
    assert daemon.kensho("fault", "primary", "slow").returncode == 0
    with chat(client, stream=True) as stream:  # type: ignore[attr-defined]
        for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert daemon.loaded()[0]["running"] == 1
    end_s = time.monotonic() + 2
    while daemon.loaded()[0]["running"]:
        assert time.monotonic() < end_s


def test_a_stream_survives_its_engine(daemon: Daemon, client: openai.OpenAI) -> None:
    for _ in range(10):  # the standby answers while the primary is learnt about, and then that meets the fault
        end_s = time.monotonic() + 10
        while daemon.loaded()[0]["engines"][0]["circuit"]["state"] != "CLOSED":
            assert time.monotonic() < end_s
        assert daemon.kensho("fault", "primary", "crash").returncode == 0
        chunks = list(chat(client, stream=True))  # type: ignore[call-overload]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == QUESTION.answer
        about = chunks[-1].model_extra["kensho"]
        if about["failovers"]:
            break
    assert (about["engine"], about["failovers"]) == ("standby", 1) and about["gap_ms"] > 0
    assert daemon.kensho("fault", "primary", "clear").returncode == 0


def test_health_says_how_it_stands(daemon: Daemon) -> None:
    with urllib.request.urlopen(f"{daemon.url}/health") as answer:
        assert (answer.status, json.load(answer)["status"]) == (200, "ready")


# --- raw sockets: what no client library would send ---


def raw(daemon: Daemon, data: bytes) -> bytes:
    """The head of what comes back."""
    with socket.create_connection(("127.0.0.1", urlsplit(daemon.url).port or 0), timeout=10) as connection:
        with contextlib.suppress(OSError):  # it may have been refused before its end
            connection.sendall(data)
        received = b""
        while b"\r\n\r\n" not in received and (data := connection.recv(65536)):
            received += data
        return received


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /health HTTP/1.1\r\nHost: kiosk-8:80\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.0\r\n\r\n", b"421"),
        (b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"421"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n{", b"413"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: null\r\nContent-Length: 2\r\n\r\n{}", b"403"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}", b"400"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -2\r\n\r\n{}", b"400"),
        (b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"400"),
    ],
)  # fmt: skip
def test_odd_requests_get_their_status(head: bytes, status: bytes, daemon: Daemon) -> None:
    assert raw(daemon, head).split(b" ", 2)[1] == status
    assert daemon.process.poll() is None


def test_a_client_that_never_reads_does_not_hurt_others(daemon: Daemon, client: openai.OpenAI) -> None:
    body = json.dumps({"model": "demo", "prompt": "Kensho", "stream": True, "max_tokens": 2000}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", urlsplit(daemon.url).port))
        deaf.sendall(head + body)
        assert chat(client).choices[0].message.content == QUESTION.answer  # type: ignore[attr-defined]
        before = psutil.Process(daemon.process.pid).memory_info().rss
        assert chat(client).choices[0].message.content == QUESTION.answer  # type: ignore[attr-defined]
        assert psutil.Process(daemon.process.pid).memory_info().rss - before < 20 << 20
