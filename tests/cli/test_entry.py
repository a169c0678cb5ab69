"""What the console script does before anything is imported."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kensho import __version__
from kensho.cli import entry
from kensho.cli import main as cli_main
from kensho.cli.usage import help_text


class FirstHost:
    """Counts how often it is closed."""

    def __init__(self) -> None:
        self.closes = 0

    def close(self) -> None:
        self.closes += 1


def call(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kensho", *argv])
    return entry.main()


@pytest.mark.parametrize(
    ("argument", "text"), [("--help", help_text()), ("-h", help_text()), ("--version", f"kensho {__version__}\n")]
)
def test_help_and_version_ask_nobody(
    argument: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entry, "try_daemon", None)
    assert call(monkeypatch, argument) == 0
    assert capsys.readouterr().out == text


def test_the_daemon_s_answer_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "try_daemon", lambda arguments, environ: 9)
    monkeypatch.setattr(entry, "_fork_host", None)
    assert call(monkeypatch, "run", "m", "p") == 9


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("run m p", True),
        ("--json run m p --max-tokens 3 --tier=raw", True),
        ("run -- m --help", True),
        ("run m", False),
        ("run m p q", False),
        ("run m p --max-tokens x", False),
        ("run m p --nonsense", False),
        ("run m p --help", False),
        ("--help run m p", False),
        ("--config c run m p", False),
        ("warm m p", False),
        ("", False),
    ],
)
def test_a_host_is_forked_only_for_a_command_that_makes_sense(line: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / "format").touch()
    assert entry.will_answer(line.split(), {"KENSHO_STORE": str(tmp_path)}) is expected


def test_a_host_is_forked_only_where_there_is_a_store(tmp_path: Path) -> None:
    argv = ["--store", str(tmp_path), "run", "m", "p"]
    assert not entry.will_answer(argv, {})
    (tmp_path / "format").touch()
    assert entry.will_answer(argv, {})
    assert not entry.will_answer(["run", "m", "p"], {"KENSHO_CONFIG": "c"})


@pytest.mark.parametrize("end", [0, 4, SystemExit(2), RuntimeError()])
def test_the_forked_host_is_closed_on_every_way_out(
    end: int | BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, left = FirstHost(), []

    def run_command(arguments: list[str], *, first_host: FirstHost) -> int:
        assert first_host is host
        if isinstance(end, BaseException):
            raise end
        return end

    monkeypatch.setenv("KENSHO_STORE", str(tmp_path))
    monkeypatch.setattr(entry, "_fork_host", lambda *_: host)
    monkeypatch.setattr(cli_main, "main", run_command)
    monkeypatch.setattr(entry, "_leave", left.append)
    if isinstance(end, BaseException):
        with pytest.raises(type(end)):
            call(monkeypatch, "run", "m", "p")
    else:
        assert call(monkeypatch, "run", "m", "p") == end
    assert host.closes == 1
    assert left == ([] if isinstance(end, BaseException) else [end])


def test_an_interrupt_before_the_command_has_begun_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "_fork_host", interrupted)
    assert call(monkeypatch, "run", "m", "p") == 130


@pytest.mark.real
@pytest.mark.parametrize("how", [">&-", "2>&-", ">&- 2>&- <&-", "> /dev/full"])
@pytest.mark.parametrize("command", ["--help", "status", "run m p"])
def test_a_closed_or_full_stream_is_no_traceback(how: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "format").write_text("1\n")
    line = f"exec {sys.executable} -m kensho --store {tmp_path} {command} {how}"
    if command == "--help":
        line = f"exec {sys.executable} -m kensho --help {how}"
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False, timeout=60)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode in ((0, 1) if command == "--help" else (1, 4))


@pytest.mark.real
@pytest.mark.parametrize("model", ["absent", "../odd"])
def test_a_run_that_fails_leaves_no_process(model: str, tmp_path: Path) -> None:
    from kensho.delivery.disk import RealDisk
    from kensho.delivery.store import Store

    Store.create(tmp_path / "store", disk=RealDisk()).close()
    # Its own session would hide the host: a reaper sees every orphan.
    program = (
        "import ctypes, os, subprocess, sys, time\n"
        "ctypes.CDLL(None).prctl(36, 1)\n"  # PR_SET_CHILD_SUBREAPER
        "code = subprocess.run(sys.argv[1:]).returncode\n"
        "try:\n"
        "    os.waitpid(-1, 0)\n"
        "except ChildProcessError:\n"
        "    sys.exit(code)\n"
        "sys.exit('a process was left')\n"
    )
    command = [sys.executable, "-m", "kensho", "--store", str(tmp_path / "store"), "run", model, "p"]
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("kensho:") == 1


@pytest.mark.real
def test_an_interrupt_at_any_moment_of_the_start_leaves_no_host(tmp_path: Path) -> None:
    from kensho.delivery.disk import RealDisk
    from kensho.delivery.store import Store

    Store.create(tmp_path / "store", disk=RealDisk()).close()
    command = [sys.executable, "-m", "kensho", "--store", str(tmp_path / "store"), "run", "absent", "p"]
    for delay_ms in (5, 20, 40, 60, 80):
        program = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            program.communicate(timeout=delay_ms / 1000)
        except subprocess.TimeoutExpired:
            program.send_signal(signal.SIGINT)
            program.communicate(timeout=10)  # an orphan would hold the pipes open
        assert program.returncode is not None
        with pytest.raises(ProcessLookupError):
            os.kill(program.pid, 0)
