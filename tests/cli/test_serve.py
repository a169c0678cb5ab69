"""`kensho serve` as people use it: a real process, real clients, real kills."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from daemon_process import QUESTION, Daemon, kensho, make_store, running

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("serve"))


@pytest.fixture(scope="module")
def daemon(store: Path) -> Iterator[Daemon]:
    with running(store, "--allow-faults") as started:
        assert started.kensho("warm", "demo").returncode == 0
        yield started


def until(is_so: Callable[[], bool], what: str) -> None:
    """Waits for something that another process does."""
    end_s = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end_s, what
        time.sleep(0.02)


def without_figures(text: str) -> str:
    text = re.sub(r", \d+ tokens/s", "", text)  # not there where a few tokens were read at once
    return re.sub(r"\d+\.\d+ s|process \d+|graph from \w+|\d\d:\d\d:\d\d", "#", text)


def test_output_is_the_same_with_and_without_a_daemon(store: Path, daemon: Daemon) -> None:
    commands = [
        ["run", "demo", QUESTION.question],
        ["run", "demo", QUESTION.question, "--quiet", "--max-tokens", "3"],
        ["run", "demo", QUESTION.question, "--temperature", "1", "--seed", "7", "--raw-prompt"],
        ["run", "absent", "hi"],
        ["run", "demo", "hi", "--max-tokens", "0"],
        ["run", "demo"],
        ["run", "demo", "hi", "--tier", "fast"],
        ["warm", "absent", "demo"],
    ]
    # The daemon has another way in: a version that it does not know is not its own.
    alone = [
        sys.executable,
        "-c",
        "import sys; from kensho.cli.main import main; sys.exit(main())",
        "--store",
        str(store),
    ]
    for command in commands:
        by_daemon = daemon.kensho(*command)
        by_itself = subprocess.run([*alone, *command], capture_output=True, text=True, check=False)
        assert by_daemon.returncode == by_itself.returncode, command
        assert without_figures(by_daemon.stdout) == without_figures(by_itself.stdout)
        assert without_figures(by_daemon.stderr) == without_figures(by_itself.stderr)
    answers = [
        daemon.kensho(*commands[0], "--json"),
        subprocess.run([*alone, *commands[0], "--json"], capture_output=True, text=True, check=False),
    ]
    (one, other) = (json.loads(done.stdout.splitlines()[-1]) for done in answers)
    assert one.keys() == other.keys()
    assert one["text"] == other["text"] == QUESTION.answer and one["token_ids"] == other["token_ids"]
    assert (one["load_source"], other["load_source"]) == ("memory", "disk")
    status, alone_status = (
        daemon.kensho("status"),
        subprocess.run([*alone, "status"], capture_output=True, text=True, check=False),
    )
    assert without_figures(status.stdout).startswith(without_figures(alone_status.stdout))


def test_status_tells_what_the_daemon_has_loaded(daemon: Daemon) -> None:
    (model,) = daemon.loaded()
    assert (model["model"], model["is_pinned"], model["level"]) == ("demo", True, "NORMAL")
    assert {engine["engine"] for engine in model["engines"]} == {"primary", "standby"}
    pids = {child.pid for child in daemon.children()}
    assert {engine["pid"] for engine in model["engines"]} <= pids | {None}
    assert "daemon: running, 1 model loaded" in daemon.kensho("status").stdout


def test_a_second_daemon_is_refused_and_says_who_runs(store: Path, daemon: Daemon) -> None:
    second = kensho(store, "serve", "--json")
    assert second.returncode == 1
    summary = json.loads(second.stdout.splitlines()[-1])
    assert summary["error"] == "daemon_running" and f"process {daemon.process.pid}" in summary["message"]
    assert daemon.kensho("status").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_client_that_ends_stops_its_answer(number: signal.Signals, daemon: Daemon) -> None:
    assert daemon.kensho("fault", "primary", "slow").returncode == 0
    command = [
        sys.executable,
        "-m",
        "kensho",
        "--store",
        str(daemon.store),
        "run",
        "demo",
        QUESTION.question,
        "--engine",
        "primary",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
        assert client.stdout and client.stdout.read(1) == "H"
        client.send_signal(number)
        out, err = client.communicate(timeout=5)
    assert "full of words" not in out
    if number == signal.SIGINT:
        assert client.returncode == 130 and "interrupted" in err
    else:
        assert client.returncode == -number
    until(lambda: daemon.loaded()[0]["running"] == 0, "the engine is still busy")


def test_other_settings_are_not_the_daemons(daemon: Daemon, tmp_path: Path) -> None:
    answer = daemon.kensho("run", "demo", QUESTION.question, "--json", "--tier", "raw")
    summary = json.loads(answer.stdout.splitlines()[-1])
    assert (summary["tier"], summary["load_source"]) == ("raw", "raw")
    config = tmp_path / "kensho.toml"
    config.write_text("max_context = 64\n")
    answer = daemon.kensho("run", "demo", QUESTION.question, "--json", "--config", str(config))
    assert json.loads(answer.stdout.splitlines()[-1])["load_source"] == "disk"


def test_faults_and_levels_are_changed_while_it_runs(store: Path, daemon: Daemon) -> None:
    assert daemon.kensho("fault", "primary", "crash", "--times", "2").returncode == 0
    assert daemon.kensho("fault", "primary", "clear").returncode == 0
    assert daemon.kensho("fault", "primary", "crash", "--model", "demo").returncode == 0
    answer = daemon.kensho("run", "demo", QUESTION.question)
    assert answer.stdout.strip() == QUESTION.answer
    assert "1 failovers" in answer.stderr and "warning: stream moved from primary to standby" in answer.stderr
    assert daemon.kensho("fault", "third", "crash").returncode == 1
    assert daemon.kensho("fault", "primary", "explode").returncode == 2
    log = store / "logs" / "kensho.jsonl"
    before = log.stat().st_size
    assert daemon.kensho("level", "resilience", "error").returncode == 0
    assert daemon.kensho("run", "demo", "hi", "--quiet").returncode == 0
    assert b"resilience.request.finished" not in log.read_bytes()[before:]
    assert daemon.kensho("level", "resilience", "info").returncode == 0
    assert daemon.kensho("run", "demo", "hi", "--quiet").returncode == 0
    assert b"resilience.request.finished" in log.read_bytes()[before:]


def test_a_client_hears_what_happens_to_its_own_request_and_no_other(daemon: Daemon) -> None:
    assert daemon.kensho("fault", "primary", "slow").returncode == 0
    argv = ["run", "demo", QUESTION.question, "--engine", "primary", "--max-tokens", "12"]
    command = [sys.executable, "-m", "kensho", "--store", str(daemon.store), *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.read(1) == "H"
        late = daemon.kensho("run", "demo", QUESTION.question, "--deadline", "0.000001")
        assert late.returncode == 9 and late.stderr.count("deadline") == 1 and "warning" not in late.stderr
        _, said = other.communicate(timeout=60)
    assert other.returncode == 0 and "refused" not in said


def test_a_person_takes_an_engine_out_and_gives_it_back(daemon: Daemon) -> None:
    assert daemon.kensho("run", "demo", "hi", "--quiet").returncode == 0
    out = json.loads(daemon.kensho("circuit", "primary", "open", "--json").stdout)
    assert (out["state"], out["reason"]) == ("FORCED_OPEN", "a person said so")
    answer = json.loads(daemon.kensho("run", "demo", QUESTION.question, "--json").stdout.splitlines()[-1])
    assert (answer["text"], answer["engine"]) == (QUESTION.answer, "standby")
    back = json.loads(daemon.kensho("circuit", "primary", "auto", "--json").stdout)
    assert back["state"] != "FORCED_OPEN"
    (primary, _) = json.loads(daemon.kensho("circuit", "--json").stdout)["circuits"]
    assert (primary["engine"], primary["is_loaded"]) == ("primary", True)
    assert daemon.kensho("circuit", "third", "open").returncode == 1
    assert daemon.kensho("circuit", "primary", "open", "--for", "0").returncode == 2


def test_what_needs_a_daemon_ends_with_8_without_one(tmp_path: Path) -> None:
    for command in (["fault", "primary", "crash"], ["level", "runtime", "debug"]):
        done = kensho(tmp_path / "none", *command, "--json")
        assert (done.returncode, json.loads(done.stdout)["error"]) == (8, "no_daemon")


def test_there_is_no_daemon_without_a_store(tmp_path: Path) -> None:
    done = kensho(tmp_path, "serve", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "storage")


def test_after_kill_9_nothing_is_left_that_blocks_the_next(store: Path, daemon: Daemon) -> None:
    children = daemon.children()
    assert children
    daemon.process.kill()
    daemon.process.wait()
    assert (store / "daemon.sock").exists()
    answer = kensho(store, "run", "demo", QUESTION.question)  # by itself
    assert answer.stdout.strip() == QUESTION.answer
    with running(store) as following:
        assert following.kensho("run", "demo", QUESTION.question).stdout.strip() == QUESTION.answer
        assert following.loaded()
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    assert not (store / "daemon.sock").exists()


def test_models_are_warmed_at_the_start_and_faults_refused_where_they_were_not_allowed(store: Path) -> None:
    with running(store, "--warm", "demo") as daemon:
        until(lambda: [model["is_pinned"] for model in daemon.loaded()] == [True], "it did not warm the model")
        refused = daemon.kensho("fault", "primary", "crash")
        assert refused.returncode == 1 and "--allow-faults" in refused.stderr
        assert daemon.stop(signal.SIGINT) == 0


def test_an_orderly_stop_lets_answers_finish_and_leaves_nothing(store: Path) -> None:
    with running(store, "--allow-faults") as daemon:
        assert daemon.kensho("warm", "demo").returncode == 0
        assert daemon.kensho("fault", "primary", "slow").returncode == 0
        command = [sys.executable, "-m", "kensho", "--store", str(store), "run", "demo", QUESTION.question]
        with subprocess.Popen(
            [*command, "--max-tokens", "6"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as client:
            assert client.stdout and client.stdout.read(1) == "H"
            assert daemon.stop() == 0
            out, _ = client.communicate(timeout=5)
        assert client.returncode == 0
        assert QUESTION.answer.startswith("H" + out.strip()) and len(out) > 3
        assert not (store / "daemon.sock").exists()


def test_an_orderly_stop_lets_a_stream_over_http_finish(store: Path) -> None:
    with running(store, "--allow-faults") as daemon:
        assert daemon.kensho("warm", "demo").returncode == 0
        assert daemon.kensho("fault", "primary", "slow").returncode == 0
        body = {"model": "demo", "messages": [{"role": "user", "content": QUESTION.question}], "stream": True}
        request = urllib.request.Request(
            f"{daemon.url}/v1/chat/completions", json.dumps(body | {"max_tokens": 5}).encode(), method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            answer.readline()
            daemon.process.send_signal(signal.SIGTERM)
            lines = [line for line in answer.read().splitlines() if line]
        assert lines[-1] == b"data: [DONE]"
        assert json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert daemon.process.wait(timeout=20) == 0
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{daemon.url}/health")


def test_a_stop_that_takes_too_long_says_so_to_the_client(store: Path, tmp_path: Path) -> None:
    config = tmp_path / "kensho.toml"
    config.write_text("stop_s = 0.2\n")
    with running(store, "--allow-faults", "--config", str(config)) as daemon:
        assert daemon.kensho("warm", "demo").returncode == 0
        assert daemon.kensho("fault", "primary", "slow").returncode == 0
        command = [sys.executable, "-m", "kensho", "--store", str(store), "run", "demo", QUESTION.question]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
            assert client.stdout and client.stdout.read(1) == "H"
            assert daemon.stop() == 0
            _, err = client.communicate(timeout=5)
        assert client.returncode == 8 and "stopping" in err


def test_a_second_signal_does_not_wait_for_answers(store: Path) -> None:
    with running(store, "--allow-faults") as daemon:
        assert daemon.kensho("warm", "demo").returncode == 0
        assert daemon.kensho("fault", "primary", "slow").returncode == 0
        command = [sys.executable, "-m", "kensho", "--store", str(store), "run", "demo", QUESTION.question]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as client:
            assert client.stdout and client.stdout.read(1) == "H"
            children = daemon.children()
            daemon.process.send_signal(signal.SIGTERM)
            until(lambda: not (store / "daemon.sock").exists(), "it did not begin to stop")
            began_s = time.monotonic()
            assert daemon.stop(signal.SIGTERM) == 130
            assert time.monotonic() - began_s < 3  # stop_s is 5
            client.communicate(timeout=5)
        assert client.returncode != 0
        _, alive = psutil.wait_procs(children, timeout=5)
        assert not alive


def test_a_port_in_use_and_an_address_that_others_reach_are_refused(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = kensho(store, "serve", "--port", str(port), "--json")
        assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "port_in_use")
    done = kensho(store, "serve", "--host", "0.0.0.0", "--port", "0", "--json")
    assert done.returncode == 2 and "--allow-remote" in json.loads(done.stdout)["advice"]
    done = kensho(store, "serve", "--host", "203.0.113.7", "--port", "0", "--json")
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "config")
    assert not (store / "daemon.sock").exists()


def test_others_are_let_in_by_word_with_a_warning_and_by_name_only(store: Path) -> None:
    command = [sys.executable, "-m", "kensho", "--store", str(store), "serve", "--port", "0"]
    command += ["--host", "0.0.0.0", "--allow-remote", "--names", "kiosk-7"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout and daemon.stderr
        url = daemon.stdout.readline().strip().replace("0.0.0.0", "127.0.0.1")
        for host, status in (("kiosk-7", 200), ("0.0.0.0", 200), ("localhost", 200), ("kiosk-8", 421)):
            request = urllib.request.Request(f"{url}/health", headers={"Host": host})
            try:
                with urllib.request.urlopen(request) as answer:
                    assert answer.status == status
            except urllib.error.HTTPError as refused:
                assert refused.code == status
        daemon.terminate()
        assert "warning: other machines reach it" in daemon.stderr.read()
    assert daemon.returncode == 0
