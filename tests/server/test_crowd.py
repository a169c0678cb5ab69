"""More connections than a daemon has descriptors: those that want something are served, and nothing is flooded."""

import contextlib
import json
import os
import resource
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from daemon_process import QUESTION, Daemon, make_store, running

pytestmark = pytest.mark.real

CROWD = 1100
HARD = resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("crowd"))


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """Enough for the clients."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= HARD < CROWD + 200:
        pytest.skip(f"{HARD} descriptors are too few for {CROWD} clients")
    resource.setrlimit(resource.RLIMIT_NOFILE, (CROWD + 200, HARD))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def crowd(daemon: Daemon, said: bytes) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        for _ in range(CROWD):
            one = held.enter_context(socket.create_connection(("127.0.0.1", urlsplit(daemon.url).port or 0), 5))
            with contextlib.suppress(OSError):  # cut off at once
                one.sendall(said)
        yield


def health(daemon: Daemon) -> int:
    """0: cut off without a word."""
    try:
        with urllib.request.urlopen(f"{daemon.url}/health", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        assert refused.headers["retry-after"] == "1"
        return refused.code
    except OSError:
        return 0


def open_files(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))


def scarce(daemon: Daemon) -> list[dict[str, object]]:
    """What its log says of the crowd; nothing else is a warning."""
    lines = (daemon.store / "logs" / "kensho.jsonl").read_text().splitlines()
    found = [line for line in map(json.loads, lines) if line["event.name"] == "kensho.app.connections.scarce"]
    assert not [line for line in lines if "app.library" in line or "app.error" in line]
    (daemon.store / "logs" / "kensho.jsonl").unlink()
    return found


@pytest.mark.parametrize("limits", [pytest.param((1024, HARD), id="soft"), pytest.param((1024, 1024), id="hard")])
def test_a_crowd_that_asks_for_nothing_keeps_nobody_out(limits: tuple[int, int], store: Path) -> None:
    with running(store, open_files=limits) as daemon:
        assert daemon.kensho("warm", "demo").returncode == 0
        alone = open_files(daemon)
        with crowd(daemon, b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            assert health(daemon) == 200
            assert open_files(daemon) < (1024 if limits[1] == 1024 else 1300)
            for engine in daemon.loaded()[0]["engines"]:  # what is needed for new ones is there
                os.kill(engine["pid"], signal.SIGKILL)
            for _ in range(3):
                assert daemon.kensho("run", "demo", QUESTION.question, "--quiet").stdout.strip() == QUESTION.answer
            assert sum(bool(engine["pid"]) for engine in daemon.loaded()[0]["engines"]) >= 1
        assert health(daemon) == 200
        assert open_files(daemon) < alone + 40
        daemon.process.send_signal(signal.SIGTERM)
        _, said = daemon.process.communicate(timeout=30)
        assert daemon.process.returncode == 0
        assert said.count("\n") <= 2  # what it serves, and how it ends
        told = scarce(daemon)
        assert 1 <= len(told) <= 3
        assert sum(int(str(line["kensho.closed"])) for line in told) >= CROWD - 1000
        assert sum(int(str(line["kensho.refused"])) for line in told) == 0


def test_a_crowd_that_keeps_all_busy_is_told_and_leaves_the_socket_alone(store: Path) -> None:
    with running(store, open_files=(1024, 1024)) as daemon:
        assert daemon.kensho("warm", "demo").returncode == 0
        slow = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"
        with crowd(daemon, slow):
            assert 503 in (health(daemon) for _ in range(50))  # those before it are still being told, perhaps
            assert open_files(daemon) < 1024
            assert daemon.kensho("run", "demo", QUESTION.question, "--quiet").stdout.strip() == QUESTION.answer
        assert health(daemon) == 200
        assert daemon.stop() == 0
        told = scarce(daemon)
        assert 1 <= len(told) <= 3
        assert sum(int(str(line["kensho.refused"])) for line in told) > CROWD // 2
