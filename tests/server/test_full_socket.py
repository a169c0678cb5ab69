"""Clients of a daemon that is there and cannot hear them start no engine beside its engines."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
from daemon_process import QUESTION, Daemon, kensho, make_store, running

from kensho.server.descriptors import CONTROL_PLACES

pytestmark = pytest.mark.real

RUN = ("run", "demo", QUESTION.question)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(make_store(tmp_path_factory.mktemp("full")), "--allow-faults") as started:
        assert started.kensho("warm", "demo").returncode == 0
        yield started


def summary(daemon: Daemon, *argv: str) -> dict[str, object]:
    done = daemon.kensho(*argv, "--json")
    said = dict(json.loads(done.stdout.splitlines()[-1]))
    return {"code": 0, **said, "exit": done.returncode}


def test_connections_that_say_nothing_keep_no_command_out(daemon: Daemon) -> None:
    silent = []
    for _ in range(CONTROL_PLACES + 100):
        silent.append(socket.socket(socket.AF_UNIX))
        silent[-1].connect(str(daemon.store / "daemon.sock"))
    answer = summary(daemon, *RUN)
    assert (answer["exit"], answer["load_source"], answer["text"]) == (0, "memory", QUESTION.answer)
    for command in (
        ["fault", "primary", "clear"],
        ["circuit", "primary", "auto"],
        ["level", "app", "info"],
        ["status"],
    ):
        assert summary(daemon, *command)["exit"] == 0
    for one in silent:
        one.close()


def test_a_daemon_that_does_not_answer_is_not_worked_around(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        for command in (RUN, ("fault", "primary", "clear")):
            began_s = time.monotonic()
            answer = summary(daemon, *command)
            assert (answer["exit"], answer["code"], answer["error"], answer["ok"]) == (9, 9, "overloaded", False)
            assert f"process {daemon.process.pid}" in str(answer["message"]) and "SIGKILL" in str(answer["advice"])
            assert 2 <= time.monotonic() - began_s < 10
        told = daemon.kensho(*RUN)
        assert (told.returncode, told.stdout) == (9, "") and told.stderr.startswith("kensho: the daemon of this store")
        status = daemon.kensho("status")
        assert status.returncode == 0 and "demo 1.0.0: ready" in status.stdout
        assert "does not answer" in status.stderr
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert summary(daemon, *RUN)["load_source"] == "memory"


def test_a_full_queue_of_a_daemon_that_does_not_answer_is_waited_for_and_told(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    waiting: list[socket.socket] = []
    try:
        while True:
            waiting.append(socket.socket(socket.AF_UNIX))
            waiting[-1].setblocking(False)
            waiting[-1].connect(str(daemon.store / "daemon.sock"))
    except BlockingIOError:
        answer = summary(daemon, *RUN)
        assert (answer["exit"], answer["error"]) == (9, "overloaded")
    finally:
        daemon.process.send_signal(signal.SIGCONT)
        for one in waiting:
            one.close()
    assert summary(daemon, *RUN)["load_source"] == "memory"


def test_a_daemon_that_dies_before_it_answers_is_none(daemon: Daemon) -> None:
    daemon.process.send_signal(signal.SIGSTOP)
    children = daemon.children()
    death = threading.Timer(1, daemon.process.kill)
    death.start()
    done = kensho(daemon.store, *RUN)
    death.join()
    assert (done.returncode, done.stdout.strip()) == (0, QUESTION.answer)
    daemon.process.wait()
    psutil.wait_procs(children, timeout=5)
