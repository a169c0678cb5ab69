"""Kill a process at its N-th system call of a kind, or make that call fail: strace does it, in the kernel's own words.

    with SystemCalls("package.module:function") as calls:      # function(*texts) -> exit code, in a process of its own
        counts = calls.count(("a", "b"))                       # Counter: system call -> times
        ended = calls.run(("a", "b"), Injection("rename", "KILL", 3))
        assert ended.is_killed

The module is imported once, in a server that forks a child for each run; strace is attached to the child before it
begins, so that N counts the function's own calls and a run takes some 50 ms instead of a second.

Traps, all met: strace counts N for each thread, so what is swept must make its calls on one thread (`count` refuses
another); `--seccomp-bpf` silently loses the signal, so it is not used; a signal is delivered at the entry of the call,
which is then not done; a number that is never reached kills nobody, so look at `is_killed` and `is_injected`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Final, Literal, Self, cast

from kensho.base.structs import Struct

CHANGING: Final = (
    "write", "writev", "pwrite64", "pwritev", "ftruncate", "truncate", "fallocate", "copy_file_range", "sendfile",
    "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "rmdir",
    "mkdir", "mkdirat", "fchmod", "chmod", "fchmodat", "fsync", "fdatasync", "sync", "syncfs", "sync_file_range",
    "msync", "fchown", "utimensat",
)  # fmt: skip
"""Every call that changes a file or a folder, or makes a change durable, but for openat with O_CREAT."""
OPENING: Final = "openat"

_CALL = re.compile(r"(?:\[pid +(\d+)\] |(\d+) +)?(\w+)\(")


class Injection(Struct):
    """`fault`: "KILL", or the name of an errno. `when`: 1 = the first call. Lasting: that one and all after it."""

    call: str
    fault: Literal["KILL", "EIO", "ENOSPC"]
    when: int
    is_lasting: bool = False

    @property
    def option(self) -> str:
        """For strace -e."""
        what = f"signal={self.fault}" if self.fault == "KILL" else f"error={self.fault}"
        return f"inject={self.call}:{what}:when={self.when}{'+' if self.is_lasting else ''}"


class Ended(Struct):
    """How a run ended. `exit_code` None: by SIGKILL."""

    exit_code: int | None
    is_injected: bool
    """The call was reached: strace says that it injected, or the child was killed by it."""
    log: str
    """What strace wrote."""

    @property
    def is_killed(self) -> bool:
        return self.exit_code is None


class SystemCalls:
    """Forks children of one server. Not thread-safe; several may be used at once."""

    def __init__(self, function: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, function], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._log = Path(tempfile.mkstemp(prefix="kensho-strace-")[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self._server.communicate()
        self._log.unlink(missing_ok=True)

    def count(self, arguments: Sequence[str]) -> Counter[str]:
        """How often each changing call, and openat of any kind, is made in an undisturbed run. ValueError if two
        threads do it."""
        ended = self._run(arguments, ("-e", f"trace={','.join(f'?{call}' for call in (*CHANGING, OPENING))}"))
        if ended.exit_code != 0:
            raise ValueError(f"the undisturbed run ended with {ended.exit_code}")
        threads: set[str] = set()
        found: Counter[str] = Counter()
        for line in ended.log.splitlines():
            match = _CALL.match(line)
            if match:
                threads.add(match[1] or match[2] or "")
                found[match[3]] += 1
        if len(threads) > 1:
            raise ValueError(f"{len(threads)} threads change files: strace would count for each of them")
        return found

    def run(self, arguments: Sequence[str], injection: Injection) -> Ended:
        return self._run(arguments, ("-e", f"trace={injection.call}", "-e", injection.option))

    def _run(self, arguments: Sequence[str], options: Sequence[str]) -> Ended:
        self._say(json.dumps(list(arguments)))
        pid = int(self._hear())
        self._log.write_text("")
        tracer = subprocess.Popen(
            ["strace", "-f", "-o", str(self._log), *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True
        )
        try:
            errors = cast(IO[str], tracer.stderr).readline()
            if "attached" not in errors:
                raise RuntimeError(f"strace could not attach: {errors}{tracer.communicate()[1]}")
            self._say("go")
            status = int(self._hear())
            errors += tracer.communicate(timeout=30)[1]
        finally:
            tracer.kill()
        log = self._log.read_text()
        if os.WIFSIGNALED(status):
            if os.WTERMSIG(status) != signal.SIGKILL:
                raise RuntimeError(f"the child died of signal {os.WTERMSIG(status)}: {errors}")
            return Ended(None, True, log)
        return Ended(os.waitstatus_to_exitcode(status), "(INJECTED)" in log, log)

    def _say(self, line: str) -> None:
        stdin = cast(IO[str], self._server.stdin)
        stdin.write(line + "\n")
        stdin.flush()

    def _hear(self) -> str:
        return cast(IO[str], self._server.stdout).readline()


def serve(function: str) -> None:
    """For each line with arguments: fork, say the child's id, wait for "go", let it run, say its wait status."""
    sys.dont_write_bytecode = True
    module, _, name = function.partition(":")
    act = getattr(import_module(module), name)
    while line := sys.stdin.readline():
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)
            try:
                code = act(*json.loads(line))
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
                code = 70
            os._exit(code)
        os.close(reading)
        print(child, flush=True)
        sys.stdin.readline()
        os.close(writing)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
