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

from kensho.base.errors import EngineError
from kensho.runtime.hosts.prefork import LIFE_PIPES, Prefork
from kensho.runtime.system.process import Child, OwnProcess, spawn


class NewHost:
    """A process that has just been made, and our ends of what it was given. Whoever has it closes and reaps it."""

    def __init__(self, child: Child, sock: socket.socket, segment: int, life: tuple[int, ...] = ()) -> None:
        """`life`: read ends of pipes that close when it dies, before its socket does (`early_death`)."""
        self.child = child
        self.sock = sock
        self.segment = segment
        self.life = life

    def discard(self, reap_s: float) -> None:
        """Nobody wants it any more. Blocks until it is reaped."""
        self.sock.close()
        for descriptor in (self.segment, *self.life):
            os.close(descriptor)
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
        ends = HostEnds.make()
        try:
            arguments = (*map(str, ends.given), *(["allow-faults"] if allow_faults else []))
            child = spawn("kensho.runtime.hosts.host_main", arguments, pass_fds=ends.given, env=env)
        except BaseException:
            ends.close()
            raise
        return ends.new_host(child)


class HostEnds:
    """What a host is given, both ends: a socket, the memory in which tensors cross, and the pipes of its life."""

    def __init__(self, ours: socket.socket, theirs: socket.socket, segment: int, pipes: list[tuple[int, int]]) -> None:
        self._ours = ours
        self._theirs = theirs
        self._segment = segment
        self._read_ends = tuple(read for read, _ in pipes)
        self._write_ends = tuple(write for _, write in pipes)

    @classmethod
    def make(cls) -> "HostEnds":
        """Raises EngineError when there is no descriptor left."""
        opened: list[int] = []
        try:
            pipes = []
            for _ in range(LIFE_PIPES):
                pipes.append(os.pipe())
                opened += pipes[-1]
            segment = os.memfd_create("kensho-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            opened.append(segment)
            ours, theirs = socket.socketpair()
        except OSError as error:
            for descriptor in opened:
                os.close(descriptor)
            raise EngineError(
                f"cannot make what an engine host needs: {error.strerror}", advice="raise the limit on open files"
            ) from error
        return cls(ours, theirs, segment, pipes)

    @property
    def given(self) -> tuple[int, ...]:
        """The descriptors for the child, in the order of `host_main.serve`: socket, segment, pipes."""
        return (self._theirs.fileno(), self._segment, *self._write_ends)

    def new_host(self, child: Child) -> NewHost:
        """The child has its copies: ours are closed, but for the segment, which both sides use."""
        self._theirs.close()
        for descriptor in self._write_ends:
            os.close(descriptor)
        return NewHost(child, self._ours, self._segment, self._read_ends)

    def close(self) -> None:
        """There will be no child."""
        self._ours.close()
        self._theirs.close()
        for descriptor in (self._segment, *self._read_ends, *self._write_ends):
            os.close(descriptor)


def adopt(first: Prefork) -> NewHost:
    """The host that was forked before our imports. Afterwards it is followed as any other."""
    stderr, sock, segment, *life = first.take()
    return NewHost(Child(OwnProcess(first.pid), stderr), socket.socket(fileno=sock), segment, tuple(life))
