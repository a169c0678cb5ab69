"""The thin client against a daemon made of a few lines: what it sends, what it shows, when it gives up."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kensho.cli import client
from kensho.cli.client import try_daemon
from kensho.server.control_frames import ACCEPTED, ERR, EXIT, NOT_MINE, OUT, SOCKET_NAME, decode_request, frame, header

Script = Callable[[socket.socket], None]


def receive(connection: socket.socket) -> tuple[bytes, bytes]:
    head = connection.recv(5, socket.MSG_WAITALL)
    kind, length = header(head)
    return kind, connection.recv(length, socket.MSG_WAITALL) if length else b""


@contextmanager
def daemon(store: Path, script: Script) -> Iterator[list[tuple[bytes, bytes]]]:
    """Takes one connection, reads its request, then does as `script` says."""
    requests: list[tuple[bytes, bytes]] = []
    folder = os.open(store, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{folder}/{SOCKET_NAME}")
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                requests.append(receive(connection))
                script(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield requests
        thread.join(5)
    os.close(folder)


def say(*frames: bytes) -> Script:
    return lambda connection: connection.sendall(b"".join(frames))


def test_the_output_of_the_command_is_shown_and_its_code_returned(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    script = say(frame(ACCEPTED), frame(OUT, b"Bon"), frame(ERR, b"note\n"), frame(OUT, b"jour\n"), frame(EXIT, b"\3"))
    with daemon(tmp_path, script) as requests:
        code = try_daemon(["run", "m", "p", "--store", str(tmp_path)], {"KENSHO_CONFIG": "c.toml"})
    assert code == 3
    assert tuple(capsysbinary.readouterr()) == (b"Bonjour\n", b"note\n")
    about, argv = decode_request(requests[0][1])
    assert argv == ["run", "m", "p", "--store", str(tmp_path)]
    assert about["store"] == str(tmp_path) and about["config"] == "c.toml" and about["terminal"] == "0"


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([frame(NOT_MINE, b"why")], id="not mine"),
        pytest.param([], id="gone"),
        pytest.param([frame(ACCEPTED)], id="accepted and gone"),
        pytest.param([b"HTTP/1.1 400 Bad Request\r\n\r\n"], id="another protocol"),
        pytest.param([ACCEPTED + b"\xff\xff\xff\xff"], id="a frame without end"),
        pytest.param([frame(ACCEPTED), frame(EXIT, b"12")], id="two codes"),
    ],
)
def test_the_command_runs_here_when_the_daemon_says_nothing_of_use(
    frames: list[bytes], tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with daemon(tmp_path, say(*frames)):
        assert try_daemon(["status"], {"KENSHO_STORE": str(tmp_path)}) is None
    assert tuple(capsysbinary.readouterr()) == (b"", b"")


@pytest.mark.parametrize("is_json", [True, False])
def test_a_daemon_that_dies_in_the_middle_is_told_in_the_form_of_the_command(
    is_json: bool, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    argv = ["run", "m", "p", *(["--json"] if is_json else [])]
    with daemon(tmp_path, say(frame(ACCEPTED), frame(OUT, b"{}\n"))):
        assert try_daemon(argv, {"KENSHO_STORE": str(tmp_path)}) == 1
    out, err = capsysbinary.readouterr()
    assert b"daemon ended" in (out if is_json else err)
    assert out.count(b"summary") == is_json


def test_a_daemon_that_hangs_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ACCEPT_S", 0.02)
    with daemon(tmp_path, lambda connection: bool(connection.recv(1)) and None):
        assert try_daemon(["status"], {"KENSHO_STORE": str(tmp_path)}) is None


def test_ctrl_c_is_handed_to_the_daemon(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a program in the background has it ignored
    main_thread = threading.get_ident()
    kinds: list[bytes] = []

    def script(connection: socket.socket) -> None:
        connection.sendall(frame(ACCEPTED) + frame(OUT, b"Bon"))
        signal.pthread_kill(main_thread, signal.SIGINT)
        connection.settimeout(0.1)
        for _ in range(100):
            try:
                kinds.append(receive(connection)[0])
                break
            except TimeoutError:
                # The signal came between Python's look for signals and its call of recv: more data wakes it.
                connection.sendall(frame(OUT, b""))
        connection.sendall(frame(ERR, b"interrupted\n") + frame(EXIT, b"\x82"))

    with daemon(tmp_path, script):
        assert try_daemon(["run", "m", "p"], {"KENSHO_STORE": str(tmp_path)}) == 130
    assert kinds == [b"C"]
    assert tuple(capsysbinary.readouterr()) == (b"Bon", b"interrupted\n")


def test_no_daemon_a_stale_socket_and_no_store_are_all_none(tmp_path: Path) -> None:
    environ = {"KENSHO_STORE": str(tmp_path)}
    assert try_daemon(["status"], environ) is None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / SOCKET_NAME))
    assert try_daemon(["status"], environ) is None
    assert try_daemon(["status"], {"KENSHO_STORE": str(tmp_path / "none")}) is None
    assert try_daemon(["status", "--store", "a\0b"], {}) is None


def test_a_path_longer_than_an_address_may_be_works(tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    store = tmp_path / ("s" * 120)
    store.mkdir()
    with daemon(store, say(frame(ACCEPTED), frame(OUT, b"ready\n"), frame(EXIT, b"\0"))):
        assert try_daemon(["status"], {"KENSHO_STORE": str(store)}) == 0
    assert capsysbinary.readouterr().out == b"ready\n"


@pytest.mark.parametrize(
    ("argv", "environ", "store"),
    [
        (["status"], {"HOME": "/h"}, "/h/.local/share/kensho"),
        (["status"], {"HOME": "/h", "XDG_DATA_HOME": "/x"}, "/x/kensho"),
        (["status"], {"HOME": "/h", "KENSHO_STORE": ""}, "/h/.local/share/kensho"),
        (["--store", "a", "status"], {"KENSHO_STORE": "b"}, "a"),
        (["run", "m", "p", "--store=a", "--json"], {"KENSHO_CONFIG": "c"}, "a"),
        (["run", "--store", "a", "--store", "b", "m", "p"], {}, "b"),
        (["run", "m", "--", "--store=a"], {"KENSHO_STORE": "b"}, "b"),
        (["--store", "status", "pull"], {}, ""),
        (["pull", "run"], {}, ""),
        (["status"], {"KENSHO_CONFIG": "c", "HOME": "/h"}, ""),
        (["status", "--config", "c"], {"KENSHO_STORE": "b"}, ""),
        (["status", "--help"], {"KENSHO_STORE": "b"}, ""),
        (["status", "--debug"], {"KENSHO_STORE": "b"}, ""),
        (["status", "--store"], {"KENSHO_STORE": "b"}, ""),
        (["status", "--store", "~/s"], {}, ""),
        ([], {"KENSHO_STORE": "b"}, ""),
    ],
)
def test_the_store_is_the_one_that_the_command_itself_would_take(
    argv: list[str], environ: dict[str, str], store: str
) -> None:
    assert client.store_of(argv, environ)[1] == store


def test_the_client_imports_nothing_but_built_in_modules() -> None:
    folder = Path(client.__file__).parents[2]
    # A stand-in for the package's own __init__, which is not the client's to keep light.
    program = (
        "import sys, types; before = set(sys.modules)\n"
        "kensho = types.ModuleType('kensho'); kensho.__path__ = [sys.argv[1]]; kensho.__version__ = '0'\n"
        "sys.modules['kensho'] = kensho\n"
        "import kensho.cli.client\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('kensho')))\n"
    )
    command = [sys.executable, "-c", program, str(folder / "kensho")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("['_socket']", "[]")
