"""SIGTERM to engines, and the end of a daemon whose engines do not end when they are told to: real processes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from daemon_process import QUESTION, Daemon, make_store, running

from kensho.runtime.hosts.host_process import GRACE_S, REAP_S

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("signals"))


@pytest.fixture
def daemon(store: Path) -> Iterator[Daemon]:
    with running(store, "--allow-faults") as started:
        assert started.kensho("warm", "demo").returncode == 0
        yield started


def engine(daemon: Daemon, name: str) -> psutil.Process:
    """The process behind it, which a standby has only some moments after its model was asked for."""
    end_s = time.monotonic() + 10
    while time.monotonic() < end_s:
        (model,) = daemon.loaded()
        (pid,) = (engine["pid"] for engine in model["engines"] if engine["engine"] == name)
        if pid is not None:
            return psutil.Process(pid)
    raise AssertionError(f"there is no {name}")


def asking(daemon: Daemon) -> "subprocess.Popen[str]":
    """A client that has the first letter of its answer."""
    command = [sys.executable, "-m", "kensho", "--store", str(daemon.store), "run", "demo", QUESTION.question]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert client.stdout and client.stdout.read(1) == QUESTION.answer[0]
    return client


def make_stubborn(daemon: Daemon, name: str) -> psutil.Process:
    """The engine's process, which a SIGTERM has not ended."""
    process = engine(daemon, name)
    assert daemon.kensho("fault", name, "ignore_sigterm").returncode == 0
    for _ in range(2):
        answer = daemon.kensho("run", "demo", QUESTION.question, "--engine", name, "--json")
        summary = json.loads(answer.stdout.splitlines()[-1])
        assert (summary["text"], summary["engine"], summary["failovers"]) == (QUESTION.answer, name, 0)
        process.terminate()
    assert engine(daemon, name) == process
    return process


def test_an_engine_that_is_told_to_end_costs_a_failover_and_no_token(daemon: Daemon) -> None:
    assert daemon.kensho("fault", "primary", "slow").returncode == 0
    with asking(daemon) as client:
        primary = engine(daemon, "primary")
        primary.terminate()
        out, _ = client.communicate(timeout=30)
    assert (client.returncode, QUESTION.answer[0] + out.strip()) == (0, QUESTION.answer)
    log = (daemon.store / "logs" / "kensho.jsonl").read_text()
    assert "SIGTERM" in next(line for line in log.splitlines() if "runtime.engine.lost" in line), log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_kills_engines_that_do_not_end_after_half_a_second_for_all_of_them(
    number: signal.Signals, daemon: Daemon
) -> None:
    engines = [make_stubborn(daemon, name) for name in ("primary", "standby")]
    began_s = time.monotonic()
    assert daemon.stop(number) == 0
    assert GRACE_S <= time.monotonic() - began_s < GRACE_S + REAP_S
    assert not any(process.is_running() for process in engines)


def test_a_killed_daemon_leaves_no_engine_that_ignores_sigterm(daemon: Daemon) -> None:
    make_stubborn(daemon, "primary")
    children = daemon.children()
    daemon.process.kill()
    daemon.process.wait()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive


def test_a_sigterm_to_all_processes_at_once_lets_the_answer_finish_all_the_same(daemon: Daemon) -> None:
    # As a service manager sends it, to the whole control group (systemd's KillMode=control-group).
    assert daemon.kensho("fault", "primary", "slow").returncode == 0
    with asking(daemon) as client:
        for child in daemon.children():
            child.terminate()
        assert daemon.stop() == 0
        out, err = client.communicate(timeout=30)
    assert (client.returncode, QUESTION.answer[0] + out.strip()) == (0, QUESTION.answer), err
