"""Engine hosts in milliseconds: forks of a process that has imported everything (the side of the program that asks).

    server = ForkServer.launch(env)                    # spawned; ready when its imports are done
    made = await server.start_host(env=env, allow_faults=False)
    server.close()                                     # it ends, and any host of it that still runs

Chain of death: a host dies with the fork-server, the fork-server with this program, each by the kernel's word
(`parent_death`). A host's pidfd is passed to us, so we kill it ourselves and see its end ourselves: a fork-server that
stalls makes no dead host look alive. How it ended is in /proc until the fork-server, whose child it is, has reaped it,
and reported by that afterwards. If the fork-server is gone nobody knows, but all its hosts were killed.
"""

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

from kensho.base.clock import Seconds
from kensho.base.errors import EngineError
from kensho.runtime.hosts.host_source import HostEnds, NewHost
from kensho.runtime.system.process import Child, Ended, spawn

REAP_S: Seconds = 2.0
_REPORT_MS = 50
"""From the moment a host is reaped until its fork-server has said how it ended: microseconds, unless it stalls."""
_MAX_REPORT_BYTES = 256


class ForkServer:
    """One fork-server process. Used from one event loop. After an error it is of no more use: close it."""

    def __init__(self, child: Child, control: socket.socket) -> None:
        self._child = child
        self._control = control
        self._hosts: list[ServedProcess] = []

    @classmethod
    def launch(cls, env: Mapping[str, str]) -> "ForkServer":
        """Start the process; what is asked of it before it is ready waits. Raises EngineError.

        `env` decides what its libraries read when they are imported; hosts may get another one of their own.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                module = "kensho.runtime.hosts.fork_server_main"
                child = spawn(module, (str(theirs.fileno()),), pass_fds=(theirs.fileno(),), env=env)
            except BaseException:
                ours.close()
                raise
        ours.setblocking(False)
        return cls(child, ours)

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def descriptor(self) -> int:
        """Readable when it has ended; valid until `ended_within` or `close` says how."""
        return self._child.descriptor

    @property
    def has_hosts(self) -> bool:
        """Whether a host of it runs, and would end with it."""
        return any(host.is_running for host in self._hosts)

    async def ended_within(self, timeout_s: Seconds) -> Ended | None:
        """See `Child.ended_within`."""
        return await self._child.ended_within(timeout_s)

    async def start_host(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        """A new host. Raises EngineError if the fork-server is gone or cannot fork. Cancelled, it leaves no host."""
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            ends = HostEnds.make()
            undo.callback(ends.close)
            try:
                report, reporter = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.callback(report.close)
                theirs.callback(reporter.close)
                stderr_read, stderr_write = os.pipe()
                undo.callback(os.close, stderr_read)
                theirs.callback(os.close, stderr_write)
                report.setblocking(False)
                request = json.dumps({"env": dict(env), "faults": allow_faults}).encode()
                socket.send_fds(self._control, [request], [stderr_write, reporter.fileno(), *ends.given])
                theirs.close()
                pid, pidfd = await _started(report)
            except OSError as error:
                raise EngineError(
                    f"the fork-server cannot be asked: {error.strerror}", advice="hosts are spawned"
                ) from error
            undo.pop_all()
        host = ServedProcess(pid, pidfd, report)
        self._hosts = [*(each for each in self._hosts if each.is_running), host]
        return ends.new_host(Child(host, stderr_read))

    def close(self) -> Ended:
        """End and reap it, about 2 ms; hosts that it still has are killed. Idempotent."""
        self._control.close()
        self._child.kill()
        return self._child.reap(REAP_S)


class ServedProcess:
    """A child of the fork-server, as `process.Process`."""

    def __init__(self, pid: int, pidfd: int, report: socket.socket) -> None:
        self.pid = pid
        self.descriptor = pidfd
        self._report = report
        self._code: int | None = None

    @property
    def is_running(self) -> bool:
        return self._code is None and not _is_readable(self.descriptor, 0)

    def poll(self) -> int | None:
        if self._code is None and not self.is_running:
            # Nobody knows: the fork-server is gone, and with it, by the kernel's hand, its hosts.
            code = self._reported(0)
            code = _exit_code(self.pid) if code is None else code
            code = self._reported(_REPORT_MS) if code is None else code
            self._code = -signal.SIGKILL if code is None else code
            self._report.close()
            os.close(self.descriptor)
        return self._code

    def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def _reported(self, wait_ms: int) -> int | None:
        """What the fork-server says, if it says it within `wait_ms`."""
        if not _is_readable(self._report.fileno(), wait_ms):
            return None
        try:
            kind, _, code = self._report.recv(_MAX_REPORT_BYTES).decode().partition(" ")
        except OSError:
            return None
        return int(code) if kind == "ended" else None


def _is_readable(descriptor: int, wait_ms: int) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(wait_ms))


def _exit_code(pid: int) -> int | None:
    """How a process ended that nobody has reaped yet; None if it is reaped, or its number is another's by now."""
    try:
        # proc(5): the state is the third field, behind the name in brackets; the last one is as waitpid will say it.
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return os.waitstatus_to_exitcode(int(fields[-1])) if fields[0] == "Z" else None
    except (OSError, ValueError, IndexError):
        return None


async def _started(report: socket.socket) -> tuple[int, int]:
    """The pid and pidfd from the first report. Raises EngineError."""
    loop, has_come = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(report, has_come.set)
    try:
        await has_come.wait()
    finally:
        loop.remove_reader(report)
    data, descriptors, _, _ = socket.recv_fds(report, _MAX_REPORT_BYTES, 1)
    kind, _, rest = data.decode().partition(" ")
    if kind == "started" and descriptors:
        return int(rest), descriptors[0]
    for descriptor in descriptors:
        os.close(descriptor)
    raise EngineError(f"the fork-server made no host: {rest or 'it is gone'}", advice="hosts are spawned")
