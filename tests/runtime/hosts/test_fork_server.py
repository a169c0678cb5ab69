"""Hosts forked from a process that has imported everything: they are hosts like any other. And who dies with whom."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from bare_hosts import descriptors, ping, run

from kensho.base.errors import EngineError
from kensho.runtime.hosts.fork_server import ForkServer
from kensho.runtime.hosts.host_source import SpawnedHosts

pytestmark = pytest.mark.real


async def eventually(is_so: Callable[[], bool]) -> None:
    for _ in range(500):
        if is_so():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never was so")


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_forked_host_has_only_what_it_was_given() -> None:
    async def main() -> None:
        server = ForkServer.launch({"LANG": "C"})
        hosts = [await server.start_host(env={}, allow_faults=False) for _ in range(3)]
        for host in hosts:
            await ping(host)
            pid = host.child.pid
            assert psutil.Process(pid).ppid() == server.pid
            assert descriptors(pid) == ["/dev/null", "/dev/null", "/memfd", "pipe", "socket"]
            assert os.getsid(pid) == pid
            assert psutil.Process(pid).num_threads() == 3  # two of them are the watch of `early_death`
        assert len({host.child.pid for host in hosts}) == 3
        for host in hosts:
            host.discard(5)
        server.close()
        server.close()

    run(main())


def test_its_environment_is_its_own_and_its_end_is_told_in_its_own_words(tmp_path: Path) -> None:
    # A session module that is imported in the fork-server, and a host that is made to print and to end.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if 'fork_server_main' in ' '.join(sys.orig_argv):\n"
        "    import kensho.runtime.hosts.host_main as host_main\n"
        "    def serve(*args, **named):\n"
        "        os.write(2, (repr(sorted(os.environ.items())) + chr(10)).encode())\n"
        "        raise SystemExit(7)\n"
        "    host_main.serve = serve\n"
    )

    async def main() -> None:
        server = ForkServer.launch({"PYTHONPATH": str(tmp_path), "A": "server"})
        host = await server.start_host(env={"A": "host"}, allow_faults=False)
        ended = await host.child.ended_within(10)
        assert ended
        assert ended.exit_code == 7
        assert ended.last_words == "[('A', 'host'), ('OPENBLAS_NUM_THREADS', '1'), ('ORT_DISABLE_TELEMETRY', '1')]"
        host.discard(0)
        server.close()

    run(main())


def test_a_killed_host_says_its_signal_and_is_reaped() -> None:
    async def main() -> None:
        server = ForkServer.launch({})
        for number in (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM):
            host = await server.start_host(env={}, allow_faults=False)
            await ping(host)
            os.kill(host.child.pid, number)
            ended = await host.child.ended_within(5)
            assert ended
            assert ended.reason == number.name
            await eventually(lambda pid=host.child.pid: not psutil.pid_exists(pid))  # type: ignore[misc]
            host.child.kill()
            host.discard(0)
        await eventually(lambda: descriptors(server.pid) == ["/dev/null", "/dev/null", "pipe", "socket"])
        server.close()

    run(main())


def test_a_host_that_ends_while_its_fork_server_stalls_has_ended() -> None:
    async def main() -> None:
        server = ForkServer.launch({})
        hosts = [await server.start_host(env={}, allow_faults=False) for _ in range(3)]
        for host in hosts:
            await ping(host)
        os.kill(server.pid, signal.SIGSTOP)
        assert server.has_hosts
        hosts[0].child.kill()
        os.kill(hosts[1].child.pid, signal.SIGSEGV)
        hosts[2].sock.close()  # it ends by itself
        for host, reason in zip(hosts, ("SIGKILL", "SIGSEGV", "exit code 0"), strict=True):
            ended = await host.child.ended_within(5)
            assert ended
            assert ended.reason == reason
            host.discard(0)
        assert not server.has_hosts
        os.kill(server.pid, signal.SIGCONT)
        await ping(another := await server.start_host(env={}, allow_faults=False))
        another.discard(5)
        server.close()

    run(main())


def test_a_start_that_is_cancelled_leaves_no_host() -> None:
    async def main() -> None:
        server = ForkServer.launch({})
        await ping(first := await server.start_host(env={}, allow_faults=False))
        for turns in range(6):
            task = asyncio.create_task(server.start_host(env={}, allow_faults=False))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await task).discard(5)
        await ping(last := await server.start_host(env={}, allow_faults=False))
        await eventually(lambda: len(psutil.Process(server.pid).children()) == 2)
        assert {child.pid for child in psutil.Process(server.pid).children()} == {first.child.pid, last.child.pid}
        first.discard(5)
        last.discard(5)
        server.close()

    run(main())


def test_hosts_die_with_a_killed_fork_server_even_if_they_hang() -> None:
    async def main() -> None:
        server = ForkServer.launch({})
        hosts = [await server.start_host(env={}, allow_faults=False) for _ in range(2)]
        for host in hosts:
            await ping(host)
            os.kill(host.child.pid, signal.SIGSTOP)
        os.kill(server.pid, signal.SIGKILL)
        for host in hosts:
            ended = await host.child.ended_within(5)
            assert ended
            assert ended.reason == "SIGKILL"
            host.discard(0)
        with pytest.raises(EngineError):
            await server.start_host(env={}, allow_faults=False)
        assert server.close().reason == "SIGKILL"
        for host in hosts:
            await eventually(lambda pid=host.child.pid: not alive(pid))  # type: ignore[misc]  # process 1 reaps it

    run(main())


def test_without_descriptors_a_start_is_an_engine_error_and_leaks_none() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main() -> None:
        server = ForkServer.launch({})
        await ping(first := await server.start_host(env={}, allow_faults=False))
        lowest, failures = os.dup(0), 0
        os.close(lowest)
        for left in range(20):
            for source in (server.start_host, SpawnedHosts().start):
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + left, limits[1]))
                try:
                    (await source(env={}, allow_faults=False)).discard(5)
                except EngineError:
                    failures += 1
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert 10 < failures < 40
        await ping(first)
        first.discard(5)
        server.close()

    run(main())


def test_fork_server_and_hosts_die_with_a_killed_application() -> None:
    text = """
import asyncio, time
from kensho.runtime.hosts.fork_server import ForkServer
from kensho.runtime.hosts.frames import Ping, encode
async def main():
    server = ForkServer.launch({})
    host = await server.start_host(env={}, allow_faults=False)
    host.sock.sendall(encode(Ping()))
    host.sock.recv(99)  # it is armed
    print(server.pid, host.child.pid, flush=True)
    time.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE)
    assert parent.stdout
    children = [psutil.Process(int(word)) for word in parent.stdout.readline().split()]
    for child in children:
        os.kill(child.pid, signal.SIGSTOP)
    parent.kill()
    parent.communicate()
    gone, left = psutil.wait_procs(children, timeout=5)
    assert len(gone) == 2, left


def test_a_process_with_threads_refuses_to_be_a_fork_server(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )

    async def main() -> None:
        server = ForkServer.launch({"PYTHONPATH": str(tmp_path)})
        with pytest.raises(EngineError, match="gone"):
            await server.start_host(env={}, allow_faults=False)
        ended = await server.ended_within(5)
        assert ended
        assert "a process with 2 threads must not fork" in ended.last_words
        server.close()

    run(main())


def test_a_request_without_descriptors_ends_the_fork_server_with_its_reason() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    module = "kensho.runtime.hosts.fork_server_main"
    command = [sys.executable, "-m", module, str(os.getpid()), str(theirs.fileno())]
    env = {"OPENBLAS_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=env, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
    theirs.close()
    ours.send(json.dumps({"env": {}, "faults": False}).encode())
    _, words = server.communicate(timeout=30)
    ours.close()
    assert server.returncode == 1
    assert b"not enough values" in words
