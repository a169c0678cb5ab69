"""The first engine host of a program that must answer at once: forked before anything heavy is imported.

    first = prefork()                       # 1 ms; only os and _socket are needed for it
    app = Kensho(settings, clock=..., first_host=first)   # imports and works while the child imports too
    ...
    first.close()                           # always, at the end; ends the child unless a host was made of it

The child imports numpy, ONNX Runtime and the host's modules on another core, then serves its socket as any engine
host does. The first engine that starts takes it; every later one comes from elsewhere (`host_source`).

Rules: (1) call it on the main thread, before any thread, event loop or buffered output exists; (2) the child gets the
variables of `child_env` and no descriptor of the caller's; its stdin and stdout are /dev/null; (3) it dies with this
process, and by `close`, which reaps it; (4) it has a session of its own, so Ctrl-C is the caller's to handle.
When the system refuses the fork (OSError), go on without: the first engine is then spawned.

The fork copies what the caller has in memory: read no secret before it.
"""

import os
from _collections_abc import Mapping  # `collections.abc` is the same and costs 1.5 ms
from _socket import socketpair

from kensho.base.child_env import child_env

_SIGKILL = 9
"""`import signal` would cost 2 ms here."""

LIFE_PIPES = 2


class Prefork:
    """A child that will be an engine host. Its descriptors belong to this object until `take`."""

    def __init__(self, pid: int, descriptors: tuple[int, ...]) -> None:
        self.pid = pid
        self._descriptors: tuple[int, ...] | None = descriptors

    @property
    def is_taken(self) -> bool:
        """True after `take` and after `close`."""
        return self._descriptors is None

    def take(self) -> tuple[int, ...]:
        """Hand the child over: read end of its stderr, socket, tensor segment, read ends of the pipes of its life
        (`early_death`). The caller reaps it from now on."""
        if self._descriptors is None:
            raise RuntimeError("the preforked host was taken before")
        descriptors, self._descriptors = self._descriptors, None
        return descriptors

    def close(self) -> None:
        """End and reap the child, about 1 ms, if it was not taken. Idempotent."""
        if self._descriptors is None:
            return
        for descriptor in self.take():
            os.close(descriptor)
        # Closing the socket would end it too, but only once its imports are done.
        os.kill(self.pid, _SIGKILL)
        os.waitpid(self.pid, 0)


def prefork(environ: Mapping[str, str] = os.environ) -> Prefork:
    """Fork the child, which sees the part of `environ` that children may see. Raises OSError."""
    parent_pid = os.getpid()
    env = child_env(environ)
    opened: list[int] = []
    try:
        ours, theirs = (end.detach() for end in socketpair())
        opened += (ours, theirs)
        stderr_read, stderr_write = os.pipe()
        opened += (stderr_read, stderr_write)
        segment = os.memfd_create("kensho-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        opened.append(segment)
        pipes = []
        for _ in range(LIFE_PIPES):
            pipes.append(os.pipe())
            opened += pipes[-1]
        pid = os.fork()
    except OSError:
        for descriptor in opened:
            os.close(descriptor)
        raise
    if pid == 0:
        from kensho.runtime.hosts.forked import become_host

        given = (theirs, segment, *(write for _, write in pipes))
        become_host(given, stderr_write, parent_pid=parent_pid, env=env, allow_faults=False)
    for descriptor in (theirs, stderr_write, *(write for _, write in pipes)):
        os.close(descriptor)
    return Prefork(pid, (stderr_read, ours, segment, *(read for read, _ in pipes)))
