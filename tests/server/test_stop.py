"""A daemon that is stopped tells the clients that it still has, over HTTP as over its socket."""

import http.client
import json
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from daemon_process import QUESTION, Daemon, make_store, running

pytestmark = pytest.mark.real

BODY = {"model": "demo", "messages": [{"role": "user", "content": QUESTION.question}]}


def ask(daemon: Daemon, **fields: object) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(daemon.url).port, timeout=20)
    connection.request("POST", "/v1/chat/completions", json.dumps(BODY | fields))
    return connection


def test_answers_that_take_too_long_end_with_words(tmp_path: Path) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text("stop_s = 0.2\n")
    with running(make_store(tmp_path), "--allow-faults", "--config", str(config)) as daemon:
        assert daemon.kensho("warm", "demo").returncode == 0
        for engine in ("primary", "standby"):
            assert daemon.kensho("fault", engine, "slow", "--times", "9").returncode == 0
        stream = ask(daemon, stream=True).getresponse()
        assert stream.status == 200 and stream.readline().startswith(b"data: ")
        whole, sending = ask(daemon), http.client.HTTPConnection("127.0.0.1", urlsplit(daemon.url).port, timeout=20)
        sending.putrequest("POST", "/v1/completions")
        sending.putheader("Content-Length", "99")
        sending.endheaders(b"{")  # and no more
        end_s = time.monotonic() + 10
        while sum(model["running"] + sum(model["waiting"].values()) for model in daemon.loaded()) < 2:
            assert time.monotonic() < end_s
        daemon.process.send_signal(signal.SIGTERM)
        events = [line for line in stream.read().splitlines() if line]
        assert json.loads(events[-1].removeprefix(b"data: "))["error"]["code"] == "stopping"
        for connection in (whole, sending):
            answer = connection.getresponse()
            assert (answer.status, answer.getheader("content-type")) == (503, "application/json")
            assert int(answer.getheader("retry-after") or 0) >= 1
            assert json.loads(answer.read())["error"]["code"] == "stopping"
        assert daemon.process.wait(timeout=20) == 0


def test_a_client_that_reads_nothing_does_not_hold_up_the_stop(tmp_path: Path) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text("stop_s = 0.0\n")
    with running(make_store(tmp_path), "--config", str(config)) as daemon:
        deaf = [ask(daemon, stream=True, max_tokens=2000) for _ in range(3)]
        assert {connection.getresponse().status for connection in deaf} == {200}
        began_s = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began_s < 5
        for connection in deaf:
            connection.close()
