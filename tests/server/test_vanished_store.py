"""A daemon whose store goes away under it, as a disk that is not mounted any more: an empty folder is in its place."""

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from daemon_process import Daemon, kensho, make_store, running

pytestmark = pytest.mark.real

SOON_S = 20.0


@contextmanager
def away(store: Path) -> Iterator[None]:
    """A mount point in its place, in which nothing may be made."""
    elsewhere = store.with_name("elsewhere")
    store.rename(elsewhere)
    store.mkdir()
    try:
        yield
        assert list(store.iterdir()) == []
    finally:
        store.rmdir()
        elsewhere.rename(store)


def ask(daemon: Daemon) -> tuple[int, dict[str, Any]]:
    body = {"model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(f"{daemon.url}/v1/chat/completions", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=30) as answered:
            return answered.status, json.loads(answered.read())["kensho"]
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def test_nothing_is_made_where_a_store_was_and_it_is_used_again_when_it_is_back(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with running(store) as daemon:
        with away(store):
            status, error = ask(daemon)
            assert (status, error["type"]) == (503, "storage_error")
            assert f"no store in {store}; is the disk mounted?" in error["message"]
            told = json.loads(kensho(store, "--json", "status").stdout.splitlines()[-1])
            assert told["state"] == "storage-missing"
        assert ask(daemon)[0] == 200
        until_s = time.monotonic() + SOON_S
        while not all(engine["pid"] for engine in daemon.loaded()[0]["engines"]) and time.monotonic() < until_s:
            time.sleep(0.1)
        primary, standby = (engine["pid"] for engine in daemon.loaded()[0]["engines"])
        with away(store):
            assert ask(daemon)[1]["engine"] == "primary", "what is loaded answers"
            os.kill(primary, signal.SIGKILL)
            assert ask(daemon)[1]["engine"] == "standby"
            time.sleep(0.5)  # circuits are written by a thread
        assert standby
        assert ask(daemon)[0] == 200
