"""A host forked before anything was imported. Each test runs in a small process of its own, as `kensho run` is one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.real

BEGIN = "import os, sys, time\nfrom kensho.runtime.hosts.prefork import prefork\n"
PING = """
import socket
from kensho.runtime.hosts import frames
def ping(fd):
    sock = socket.socket(fileno=fd)
    sock.sendall(frames.encode(frames.Ping()))
    assert sock.recv(99) == frames.encode(frames.Pong())
    return sock
"""


def run(text: str, env: dict[str, str] | None = None) -> str:
    """What a program that begins with a prefork prints."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + text], env=env or {}, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = {"numpy", "onnxruntime", "asyncio", "socket", "subprocess", "ctypes", "signal", "json", "logging"}
    loaded = run("print(*sys.modules)").split()
    assert "kensho.runtime.hosts.prefork" in loaded
    assert not heavy & set(loaded)


def test_the_child_answers_as_any_host_and_ends_with_its_socket() -> None:
    text = """
first = prefork()
stderr_fd, sock_fd, *_ = first.take()
assert first.is_taken
sock = ping(sock_fd)
sock.close()
print(os.waitpid(first.pid, 0)[1], os.read(stderr_fd, 999))
first.close()
"""
    assert run(PING + text) == "0 b''\n"


def test_a_child_that_is_not_needed_is_ended_and_reaped_at_once() -> None:
    text = """
open_before = os.listdir("/proc/self/fd")
first = prefork()
began = time.monotonic()
first.close()
first.close()
assert time.monotonic() - began < 0.05  # its imports take longer
assert first.is_taken
assert os.listdir("/proc/self/fd") == open_before
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no child")
"""
    assert run(text) == "no child\n"


def test_the_child_has_no_descriptor_of_its_parent() -> None:
    text = """
secret = os.open("/dev/null", os.O_RDONLY)
os.set_inheritable(secret, True)
first = prefork()
sock = ping(first.take()[1])
print(sorted(os.readlink(f"/proc/{first.pid}/fd/{n}").split(":")[0] for n in os.listdir(f"/proc/{first.pid}/fd")))
sock.close()
os.waitpid(first.pid, 0)
"""
    assert run(PING + text) == "['/dev/null', '/dev/null', '/memfd', 'pipe', 'socket']\n"


def test_the_child_sees_only_chosen_variables(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("import os, sys\nos.write(2, repr(sorted(os.environ)).encode())\nsys.exit(5)\n")
    text = """
first = prefork()
stderr_fd = first.take()[0]
print(os.waitstatus_to_exitcode(os.waitpid(first.pid, 0)[1]), os.read(stderr_fd, 9999).decode())
"""
    printed = run(text, {"SECRET": "x", "LANG": "C.UTF-8", "PYTHONPATH": str(tmp_path)})
    assert printed == "5 ['LANG', 'OPENBLAS_NUM_THREADS', 'ORT_DISABLE_TELEMETRY', 'PYTHONPATH']\n"


def test_a_child_that_cannot_import_says_why(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise ImportError('numpy is broken here')")
    text = """
first = prefork()
stderr_fd, sock_fd, *_ = first.take()
print(os.waitstatus_to_exitcode(os.waitpid(first.pid, 0)[1]), os.read(stderr_fd, 9999).decode().splitlines()[-1])
"""
    assert run(text, {"PYTHONPATH": str(tmp_path)}) == "1 ImportError: numpy is broken here\n"


def test_the_child_dies_with_its_parent() -> None:
    text = "first = prefork()\nsock = ping(first.take()[1])\nprint(first.pid, flush=True)\ntime.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", BEGIN + PING + text], stdout=subprocess.PIPE)
    assert parent.stdout
    child = psutil.Process(int(parent.stdout.readline()))
    os.kill(child.pid, signal.SIGSTOP)  # it cannot see that its socket closes
    parent.kill()
    parent.communicate()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone
