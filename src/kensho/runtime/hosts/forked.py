"""What a child does after a fork to be an engine host and nothing else. Imports little before it is safe to fail.

The copy of the parent that it begins as must not leak into it: descriptors, environment, terminal and exit handlers are
dropped. Its errors go to the stderr pipe as those of a spawned host do, and its exit code is what Python's would be.
"""

import gc
import os
from collections.abc import Mapping, Sequence
from typing import NoReturn


def become_host(
    given: Sequence[int], stderr_fd: int, *, parent_pid: int, env: Mapping[str, str], allow_faults: bool
) -> NoReturn:
    """Serve with what it is `given` (as `host_main.serve` says) until the socket closes, in the freshly forked child of
    `parent_pid`. Never returns, never raises."""
    code = 1
    try:
        os.dup2(stderr_fd, 2)
        from kensho.runtime.system.parent_death import die_with_parent

        die_with_parent(parent_pid)
        _shed(keep=given)
        os.environ.clear()
        os.environ.update({**env, "OPENBLAS_NUM_THREADS": "1", "ORT_DISABLE_TELEMETRY": "1"})
        gc.disable()  # modules are no garbage: looking for it in them costs 4 ms here
        from kensho.runtime.hosts.host_main import serve

        gc.freeze()
        gc.enable()
        serve(given, allow_faults=allow_faults)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        _report()
    finally:
        os._exit(code)


def _shed(keep: Sequence[int]) -> None:
    """A session of its own; nothing to read; no descriptor but those it needs."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    start = 3
    for descriptor in sorted(keep):
        os.closerange(start, descriptor)
        start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _report() -> None:
    import traceback

    os.write(2, traceback.format_exc().encode("utf-8", "replace"))
