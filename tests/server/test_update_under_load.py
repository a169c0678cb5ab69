"""A real daemon whose store is changed by other processes while it answers: nobody notices, and it is said."""

import contextlib
import fcntl
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from daemon_process import QUESTION, Daemon, kensho, running

from kensho.base.structs import Struct
from kensho.cli.main import main
from kensho.delivery.keys import keygen
from kensho.demo.second_version import copy_model, make_second_version
from kensho.demo.stage import embedded_model, questions

pytestmark = pytest.mark.real

ANSWERS = {version: {one.question: one.answer for one in questions(version)} for version in ("1.0.0", "2.0.0")}
ANSWER = ANSWERS["2.0.0"][QUESTION.question]
"""What every version that works says to the same question."""


class Publisher:
    """Three models of one name: the first, a fine-tune of it, and one with a norm that is not finite."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.repository = folder / "repository"
        keygen(folder / "keys")
        copy_model(embedded_model() / "v1", folder / "first")
        changes = next((embedded_model() / "v2").glob("*.safetensors"))
        make_second_version(folder / "first", changes, folder / "second")
        copy_model(folder / "first", folder / "broken")
        weights = folder / "broken" / "model.safetensors"
        data = bytearray(weights.read_bytes())
        length = int.from_bytes(data[:8], "little")
        tensors = json.loads(bytes(data[8 : 8 + length]))
        begin, end = next(tensor["data_offsets"] for name, tensor in tensors.items() if "layernorm" in name)
        data[8 + length + begin : 8 + length + end] = b"\xff" * (end - begin)
        weights.write_bytes(data)
        self._releases = 0

    def publish(self, which: str) -> str:
        """Its version: 1, 2, 3 ..."""
        self._releases += 1
        version = str(self._releases)
        argv = ["publish", str(self._folder / which), "--model", "demo", "--version", version, "--quiet"]
        assert main([*argv, "--to", str(self.repository), "--keys", str(self._folder / "keys")]) == 0
        return version


class Answered(Struct):
    """One request, from a client's side. `version` is "failed" where there was no whole answer; `text` says why."""

    began_s: float
    ended_s: float
    version: str
    text: str


class Load:
    """Clients that ask one question after the other, as streams and whole, until the end of the block."""

    def __init__(self, url: str, clients: int) -> None:
        self._url = url
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(number % 2 == 0,)) for number in range(clients)]
        self.answered: list[Answered] = []

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def until(self, version: str, *, within_s: float = 30.0) -> None:
        """A request that begins now or later is answered by this version."""
        began_s = time.monotonic()
        while not any(one.version == version and one.began_s > began_s for one in self.answered):
            assert time.monotonic() < began_s + within_s, f"nothing was answered by {version}"
            time.sleep(0.02)

    def _ask_on(self, is_stream: bool) -> None:
        while not self._is_over.is_set():
            began_s = time.monotonic()
            try:
                version, text = ask(self._url, is_stream)
            except Exception as error:
                said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
                version, text = "failed", f"{error!r} {said}"
            self.answered.append(Answered(began_s, time.monotonic(), version, text))


def ask(url: str, is_stream: bool, max_tokens: int = 100) -> tuple[str, str]:
    """The version that answered, and its words."""
    question = [{"role": "user", "content": QUESTION.question}]
    body = {"model": "demo", "messages": question, "stream": is_stream, "max_tokens": max_tokens}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=60) as reply:
        version = reply.headers["x-kensho-model-version"]
        if not is_stream:
            return version, json.load(reply)["choices"][0]["message"]["content"]
        events = [json.loads(line[6:]) for line in reply if line.startswith(b"data: {")]
    return version, "".join(c["delta"].get("content") or "" for event in events for c in event["choices"])


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return Publisher(tmp_path_factory.mktemp("publisher"))


@pytest.fixture(scope="module")
def original(publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with version 1, compiled."""
    publisher.publish("first")
    folder, root = tmp_path_factory.mktemp("original") / "store", publisher.repository / "metadata" / "1.root.json"
    init = ["init", "--from", publisher.repository.as_uri(), "--root", str(root)]
    for argv in (init, ["pull", "demo"], ["warm", "demo"]):
        assert kensho(folder, *argv).returncode == 0
    return folder


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-a", original, tmp_path / "store"], check=True)  # keeps what is one file by two names
    return tmp_path / "store"


@contextlib.contextmanager
def warm_daemon(store: Path, *options: str) -> Iterator[Daemon]:
    with running(store, *options) as daemon:
        assert daemon.kensho("warm", "demo").returncode == 0
        yield daemon


def engines(daemon: Daemon) -> set[int]:
    """The processes of the model's two engines, as soon as both run."""
    pids: set[int] = set()

    def are_up() -> bool:
        (model,) = daemon.loaded()
        pids.clear()
        pids.update(engine["pid"] for engine in model["engines"] if engine["pid"])
        return len(pids) == 2

    until(are_up, "an engine does not start")
    return pids


def are_gone(pids: set[int]) -> bool:
    return not any(map(psutil.pid_exists, pids))


def update(publisher: Publisher, daemon: Daemon, which: str) -> str:
    """Publish and pull, as by another person and by cron; returns the new version."""
    version = publisher.publish(which)
    assert daemon.kensho("pull").returncode == 0
    return version


def until(is_so: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def is_leased(store: Path, version: str) -> bool:
    fd = os.open(store / "versions" / "demo" / version, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def events(store: Path, name: str) -> list[dict[str, object]]:
    lines = map(json.loads, (store / "logs" / "kensho.jsonl").read_text().splitlines())
    return [line for line in lines if line["event.name"] == f"kensho.{name}"]


def test_updates_and_rollbacks_under_load_fail_no_request(publisher: Publisher, store: Path) -> None:
    with warm_daemon(store) as daemon, Load(daemon.url, clients=3) as load:
        load.until("1")
        first = engines(daemon)
        second = update(publisher, daemon, "second")
        load.until(second)
        until(lambda: are_gone(first), "the engines of version 1 are still there")
        until(lambda: not is_leased(store, "1"), "version 1 is still leased")
        (model,) = daemon.loaded()
        assert (model["version"], model["is_pinned"], model["wanted_version"]) == (second, True, "")
        assert is_leased(store, second)
        assert daemon.kensho("rollback", "demo").returncode == 0
        load.until("1")
    assert {one.version for one in load.answered} == {"1", second}, [x for x in load.answered if x.version == "failed"]
    assert {one.text for one in load.answered} == {ANSWER}
    said = events(store, "runtime.version.changed")
    changes = [(event["kensho.from_version"], event["kensho.to_version"]) for event in said]
    assert changes == [("1", second), (second, "1")]


def test_a_version_that_cannot_be_used_is_not_gone_over_to_and_the_status_says_so(
    publisher: Publisher, store: Path
) -> None:
    with warm_daemon(store) as daemon, Load(daemon.url, clients=2) as load:
        load.until("1")
        broken = update(publisher, daemon, "broken")
        until(lambda: events(store, "runtime.version.kept") != [], "nothing was said")
        status = daemon.kensho("status", "--json")
        summary = json.loads(status.stdout.splitlines()[-1])
        assert (status.returncode, summary["state"]) == (3, "degraded")
        (model,) = summary["models"]
        assert (model["version"], model["answering"]) == (broken, "1")
        assert "not finite" in model["reason"] and model["instead"] == "1 answers"
        assert "not finite" in daemon.loaded()[0]["kept_because"]
        with urllib.request.urlopen(f"{daemon.url}/v1/models/demo") as reply:
            assert json.load(reply)["kensho"]["version"] == "1"
        assert daemon.kensho("warm", "demo").returncode == 1, "who wants that version now is told why not"
        good = update(publisher, daemon, "second")
        load.until(good)
        assert daemon.kensho("status").returncode == 0
    assert {one.version for one in load.answered} == {"1", good}
    assert {one.text for one in load.answered} == {ANSWER}


def test_a_stream_ends_on_the_version_that_it_began_with(publisher: Publisher, store: Path) -> None:
    with warm_daemon(store, "--allow-faults") as daemon:
        old = engines(daemon)
        assert daemon.kensho("fault", "primary", "slow").returncode == 0
        answers: list[tuple[str, str]] = []
        stream = threading.Thread(target=lambda: answers.append(ask(daemon.url, is_stream=True, max_tokens=20)))
        stream.start()
        until(lambda: daemon.loaded()[0]["running"] == 1, "the stream has not begun")
        new = update(publisher, daemon, "second")
        until(lambda: daemon.loaded()[0]["version"] == new, "it does not go over")
        assert ask(daemon.url, is_stream=False) == (new, ANSWER)
        assert stream.is_alive() and not are_gone(old) and is_leased(store, "1")
        stream.join(timeout=60)
        ((version, text),) = answers
        assert version == "1" and ANSWER.startswith(text) and len(text) > 50
        until(lambda: are_gone(old), "the engines of version 1 are still there")
        until(lambda: not is_leased(store, "1"), "version 1 is still leased")


def test_where_the_budget_is_for_one_version_alone_requests_wait_and_do_not_fail(
    publisher: Publisher, store: Path, tmp_path: Path
) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text("model_memory_bytes = 340_000_000\n")  # two hosts are 137 MB, the reserve is 134 MB
    with warm_daemon(store, "--config", str(config)) as daemon, Load(daemon.url, clients=2) as load:
        load.until("1")
        new = update(publisher, daemon, "second")
        load.until(new, within_s=90)
    assert {one.version for one in load.answered} == {"1", new}
    assert {one.text for one in load.answered} == {ANSWER}
