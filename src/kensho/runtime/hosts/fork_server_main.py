"""The fork-server: a process that has imported what an engine host needs, and forks one whenever it is asked.

    python -m kensho.runtime.hosts.fork_server_main PARENT_PID CONTROL_FD

It has no model, no session and one thread (a fork copies only the thread that forks, and locks held by others stay
locked for ever); it refuses to serve otherwise. Each message on CONTROL_FD is a JSON object `{"env", "faults"}` with
descriptors: the host's stderr, a socket for reports, and what the host is given. To the socket go two messages:
`started <pid>` with the host's pidfd, and, once it is reaped, `ended <exit code>` (negative: a signal).

It ends when CONTROL_FD closes or its parent dies, and its hosts with it.
"""

import gc
import json
import os
import select
import socket
import sys
from pathlib import Path

from kensho.base.errors import EngineError
from kensho.runtime.hosts import host_main  # for what it imports: numpy, ONNX Runtime, the host
from kensho.runtime.hosts.forked import become_host
from kensho.runtime.hosts.prefork import LIFE_PIPES
from kensho.runtime.system.parent_death import die_with_parent

MAX_REQUEST_BYTES = 64 * 1024
DESCRIPTORS = 4 + LIFE_PIPES
_PRELOADED = (host_main,)


class ForkServer:
    """Forks hosts and reaps them. One thread."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._hosts: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> its pid, where its end is reported

    def serve(self) -> None:
        """Until nobody is there who could ask."""
        while True:
            for descriptor, _ in self._poll.poll():
                if descriptor != self._control.fileno():
                    self._reap(descriptor)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        data, descriptors, _, _ = socket.recv_fds(self._control, MAX_REQUEST_BYTES, DESCRIPTORS)
        if not data:
            return False
        request = json.loads(data)
        stderr, report_fd, *given = descriptors
        report = socket.socket(fileno=report_fd)
        me = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _tell(report, f"failed {error.strerror}", [])
        else:
            if pid == 0:
                become_host(given, stderr, parent_pid=me, env=request["env"], allow_faults=bool(request["faults"]))
            pidfd = os.pidfd_open(pid)
            self._hosts[pidfd] = pid, report
            self._poll.register(pidfd, select.POLLIN)
            _tell(report, f"started {pid}", [pidfd])
        for descriptor in (stderr, *given):
            os.close(descriptor)
        return True

    def _reap(self, pidfd: int) -> None:
        pid, report = self._hosts.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        _tell(report, f"ended {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}", [])
        report.close()


def _tell(report: socket.socket, words: str, descriptors: list[int]) -> None:
    try:
        socket.send_fds(report, [words.encode()], descriptors, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return  # nobody wants to know any more


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    with socket.socket(fileno=int(sys.argv[2])) as control:
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            raise EngineError(f"a process with {threads} threads must not fork", advice="hosts are spawned")
        # What is there now lives as long as the process: collections in the hosts need not touch, and copy, its pages.
        gc.collect()
        gc.freeze()
        ForkServer(control).serve()


if __name__ == "__main__":
    main()
