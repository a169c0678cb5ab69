"""Where engine hosts come from: a process that serves one socket, made by a spawn, a fork-server or a prefork.

A source only makes the process. `host_process` follows it and `host` talks to it, wherever it is from, and the process
keeps the same promises: it is told in one place when it dies, it dies with this program, what it wrote last is kept.

    spawn         a new interpreter that imports everything: 110 to 250 ms until it answers
    fork-server   a fork of a process that has imported everything: 10 to 20 ms (`fork_server`)
    prefork       this program's own fork from before its imports: it is there already (`prefork`)
"""

import os
import socket
from collections.abc import Mapping
from typing import Protocol

from kensho.runtime.prefork import Prefork
from kensho.runtime.process import Child, OwnProcess, spawn


class NewHost:
    """A process that has just been made, and our ends of what it was given. Whoever has it closes and reaps it."""

    def __init__(self, child: Child, sock: socket.socket, segment: int) -> None:
        self.child = child
        self.sock = sock
        self.segment = segment

    def discard(self, reap_s: float) -> None:
        """Nobody wants it any more. Blocks until it is reaped."""
        self.sock.close()
        os.close(self.segment)
        self.child.kill()
        self.child.reap(reap_s)


class HostSource(Protocol):
    """Makes engine hosts. Used from one event loop."""

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        """A new process; it answers Ping when its imports are done. `env` is its whole environment, but for the
        variables that keep libraries from starting threads. Raises EngineError; cancelled, it leaves nothing."""
        ...


class SpawnedHosts:
    """Every host is a new interpreter."""

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        pair = HostEnds.make()
        try:
            arguments = (str(pair.theirs.fileno()), str(pair.segment), *(["allow-faults"] if allow_faults else []))
            passed = (pair.theirs.fileno(), pair.segment)
            child = spawn("kensho.runtime.host_main", arguments, pass_fds=passed, env=env)
        except BaseException:
            pair.close()
            raise
        pair.theirs.close()
        return NewHost(child, pair.ours, pair.segment)


class HostEnds:
    """What a host is given, both ends: a socket, and the memory in which tensors cross (`tensor_segment`)."""

    def __init__(self, ours: socket.socket, theirs: socket.socket, segment: int) -> None:
        self.ours = ours
        self.theirs = theirs
        self.segment = segment

    @classmethod
    def make(cls) -> "HostEnds":
        ours, theirs = socket.socketpair()
        try:
            segment = os.memfd_create("kensho-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except BaseException:
            ours.close()
            theirs.close()
            raise
        return cls(ours, theirs, segment)

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
        os.close(self.segment)


def adopt(first: Prefork) -> NewHost:
    """The host that was forked before our imports. Afterwards it is followed as any other."""
    socket_fd, stderr_fd, segment = first.take()
    return NewHost(Child(OwnProcess(first.pid), stderr_fd), socket.socket(fileno=socket_fd), segment)
