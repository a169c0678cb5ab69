"""The place that starts programs: a Python module of ours in a child that cannot outlive us.

    child = spawn("kensho.runtime.hosts.host_main", ("--fd", "7"), pass_fds=(7,), env={})
    child.kill(); ended = child.reap(timeout_s=2.0)

Rules: (1) no shell, a given environment, no inherited descriptor but the named ones; (2) the child gets our process
id as first argument and calls `parent_death.die_with_parent` with it; (3) children are made on one thread that lives as
long as the process, because the kernel ends them when the *thread* that made them ends (measured; prctl(2));
(4) waiting is always bounded: a process in an uninterruptible driver call survives SIGKILL and is left to the kernel;
(5) stderr is drained by a thread that keeps the last 8 KiB, so that a chatty child neither blocks nor fills a disk;
(6) a child is held by its pidfd: no signal can hit a stranger, and its end is an event of the loop.

Forks of what is loaded already are made elsewhere (`prefork`, `fork_server`); `Child` follows them just the same.
"""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from kensho.base.clock import Seconds
from kensho.base.errors import EngineError
from kensho.base.structs import Struct
from kensho.runtime.hosts.early_death import early_signal
from kensho.runtime.system.machine import ENGINE_ENVIRONMENT

STDERR_TAIL_BYTES = 8192


class Ended(Struct):
    """How a process ended. `exit_code` None: it did not end within the time given after SIGKILL."""

    pid: int
    exit_code: int | None
    """As `subprocess` says it: 0 or more = exit code, negative = signal number."""
    stderr: str
    """The last lines it wrote, at most 8 KiB."""

    @property
    def reason(self) -> str:
        """`SIGKILL`, `exit code 1`, `does not react to SIGKILL`."""
        if self.exit_code is None:
            return "does not react to SIGKILL"
        if self.exit_code >= 0:
            return f"exit code {self.exit_code}"
        try:
            return signal.Signals(-self.exit_code).name
        except ValueError:
            return f"signal {-self.exit_code}"

    @property
    def last_words(self) -> str:
        """The last line on stderr, for an error message."""
        return self.stderr.rstrip().rpartition("\n")[2].strip()[:300]

    @property
    def explained(self) -> str:
        """The reason, and the last words where there are any."""
        return f"{self.reason} ({self.last_words})" if self.last_words else self.reason


class Process(Protocol):
    """A process that somebody reaps: this program (`OwnProcess`), or a fork-server on its behalf."""

    @property
    def pid(self) -> int: ...

    @property
    def descriptor(self) -> int:
        """Becomes readable when `poll` has an answer; closed by the `poll` that gives it."""
        ...

    def poll(self) -> int | None:
        """How it ended, as `Ended.exit_code` says it; None while it runs. Does not block; reaps."""
        ...

    def kill(self) -> None:
        """SIGKILL. Never hits another process that took over the number."""
        ...


class OwnProcess:
    """A child of this process, held by its pidfd: that cannot mean another process, and its end is an event."""

    def __init__(self, pid: int, popen: "subprocess.Popen[bytes] | None" = None) -> None:
        """`popen`: the object that made it, which is told how it ended (it would complain else)."""
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)
        self._popen = popen
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            try:
                found = os.waitid(os.P_PIDFD, self.descriptor, os.WEXITED | os.WNOHANG)
            except ChildProcessError:
                self._end(0)  # the program around us reaps every child it sees: how it ended is lost
            else:
                if found is not None:
                    self._end(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)
        return self._code

    def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, signal.SIGKILL)

    def _end(self, code: int) -> None:
        self._code = code
        os.close(self.descriptor)
        if self._popen:
            self._popen.returncode = code


class Child:
    """A running process. Not thread-safe. Always end its use with `kill` and `reap`."""

    def __init__(self, process: Process, stderr: int) -> None:
        """Takes over `stderr`, the read end of its pipe."""
        self._process = process
        self._tail = bytearray()
        self._drain = threading.Thread(
            target=self._keep_tail, args=(stderr,), name=f"stderr-{process.pid}", daemon=True
        )
        self._drain.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def descriptor(self) -> int:
        """Readable once the process has ended; valid until `ended` has said how."""
        return self._process.descriptor

    def ended(self) -> Ended | None:
        """How it ended (reaping it), or None while it runs. Does not block."""
        code = self._process.poll()
        return None if code is None else self._result(code)

    def kill(self) -> None:
        """SIGKILL. Idempotent; never hits a process that took over the number."""
        self._process.kill()

    def dying(self) -> Ended | None:
        """How it will have ended, if it is on its way there by a signal without last words. Does not block or reap."""
        number = early_signal(self.pid)
        return None if number is None else Ended(self.pid, -number, bytes(self._tail).decode("utf-8", "replace"))

    async def ended_within(self, timeout_s: Seconds) -> Ended | None:
        """How it ended, None if it still runs after `timeout_s`. For an event loop; one waiter at a time."""
        if (ended := self.ended()) is not None:
            return ended
        loop, has_ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self.descriptor, has_ended.set)
        try:
            async with asyncio.timeout(timeout_s):
                await has_ended.wait()
        except TimeoutError:
            return None
        finally:
            loop.remove_reader(self.descriptor)
        return self.ended()

    def reap(self, timeout_s: Seconds) -> Ended:
        """Wait until it has ended, `timeout_s` at most."""
        code = self._process.poll()
        if code is None:
            waiting = select.poll()
            waiting.register(self.descriptor, select.POLLIN)
            waiting.poll(timeout_s * 1000)
            code = self._process.poll()
        return self._result(code)

    def _result(self, code: int | None) -> Ended:
        if code is not None:
            # A grandchild could hold the pipe open for ever: what has come so far is enough then.
            self._drain.join(timeout=0.2)
        return Ended(self.pid, code, bytes(self._tail).decode("utf-8", "replace"))

    def _keep_tail(self, stderr: int) -> None:
        try:
            while data := os.read(stderr, 4096):
                self._tail += data
                del self._tail[:-STDERR_TAIL_BYTES]
        finally:
            os.close(stderr)


def spawn(module: str, arguments: Sequence[str] = (), *, pass_fds: Sequence[int], env: Mapping[str, str]) -> Child:
    """Start `python -m module <our pid> <arguments>` in a session of its own. A few milliseconds, from any thread.

    `env` is the whole environment of the child, but for `ENGINE_ENVIRONMENT`. The caller closes its copies of
    `pass_fds`. Raises EngineError.
    """
    return _spawner.get().submit(_spawn, module, tuple(arguments), tuple(pass_fds), dict(env)).result()


def _spawn(module: str, arguments: tuple[str, ...], pass_fds: tuple[int, ...], env: dict[str, str]) -> Child:
    # -P: the current folder is not searched for modules. Its own session: Ctrl-C in a terminal is for us to handle.
    command = [sys.executable, "-P", "-m", module, str(os.getpid()), *arguments]
    try:
        read_end, write_end = os.pipe()
    except OSError as error:
        raise EngineError(f"cannot start {module}: {error.strerror}", advice="raise the limit on open files") from error
    popen = None
    try:
        popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=write_end,
            env={**env, **ENGINE_ENVIRONMENT},
            pass_fds=pass_fds,
            start_new_session=True,
        )
        own = OwnProcess(popen.pid, popen)
    except OSError as error:
        os.close(read_end)
        if popen:  # no descriptor was left to hold it by
            popen.kill()
            popen.wait()
        raise EngineError(
            f"cannot start {module}: {error.strerror}", advice="check the limits on processes and memory"
        ) from error
    finally:
        os.close(write_end)
    return Child(own, read_end)


class _Spawner:
    """One thread, made at first use and again after a fork (threads do not survive one)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        os.register_at_fork(after_in_child=self._forget)

    def get(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawn")
            return self._pool

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._pool = None


_spawner = _Spawner()
