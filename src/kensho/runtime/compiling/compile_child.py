"""The compiler: a child process that makes one graph, says what it is doing, and may be killed at any time.

    python -m kensho.runtime.compiling.compile_child PARENT_PID REPORT_FD JOB

JOB is a JSON object (see `compile_job`); nothing but this program and its parent uses it. To REPORT_FD go JSON lines:
`{"stage","done","total","unit"}`, at most 20 a second and every first and last one, then exactly one
`{"finished": true}` or `{"error": ...}` (from `error_wire`). It writes only into the output folder it was given.
"""

import contextlib
import ctypes
import json
import os
import platform
import sys
from pathlib import Path

from kensho.base.clock import Clock, Seconds, SystemClock
from kensho.base.errors import CompileFailed, KenshoError
from kensho.base.network_guard import forbid_network
from kensho.runtime.compiling.compile_job import CompileJob, parse_job
from kensho.runtime.hosts.error_wire import describe_error
from kensho.runtime.system.parent_death import die_with_parent

_MIN_GAP_S: Seconds = 0.05
_BACKGROUND_NICE = 10
"""A ninth of an even share beside a busy program, all of it beside an idle one (sched(7))."""
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""Number of the system call ioprio_set(2), which the C library does not offer."""
_IOPRIO_WHO_PROCESS, _IOPRIO_CLASS_IDLE, _IOPRIO_CLASS_SHIFT = 1, 3, 13


def run_when_idle() -> None:
    """From now on this process, with the threads it will make, takes what nobody else wants of processors and disk.

    Where the system refuses, less is asked of it: a compile that disturbs a little is no error.
    """
    with contextlib.suppress(OSError):
        os.nice(19)
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE << _IOPRIO_CLASS_SHIFT)


class Report:
    """The line to the parent."""

    def __init__(self, descriptor: int, clock: Clock) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._last_s = 0.0
        self.stage = "parsing"

    def progress(self, stage: str, done: int, total: int, unit: str) -> None:
        """A stage has come so far. Steps that follow each other too fast to be seen are left out."""
        now_s = self._clock.monotonic_s()
        if stage == self.stage and 0 < done < total and now_s - self._last_s < _MIN_GAP_S:
            return
        self.stage, self._last_s = stage, now_s
        self.send({"stage": stage, "done": done, "total": total, "unit": unit})

    def send(self, document: dict[str, object]) -> None:
        os.write(self._descriptor, json.dumps(document).encode() + b"\n")


def run(job: CompileJob, report: Report, clock: Clock) -> None:
    """Do the job. Raises KenshoError; anything else that happens in a compiler becomes CompileFailed."""
    model_folder, out_folder = Path(job.model_folder), Path(job.out_folder)
    try:
        if job.key is None:
            from kensho.runtime.graph.raw_graph import build_raw

            build_raw(model_folder, out_folder, max_positions=job.max_positions)
            return
        from kensho.runtime.compiling import stages  # and the engine: 0.1 s

        stages.compile_model(
            model_folder,
            out_folder,
            key=job.key,
            model=job.model,
            version=job.version,
            clock=clock,
            progress=report.progress,
            threads=job.threads,
        )
    except KenshoError:
        raise
    except Exception as error:
        raise CompileFailed(
            f"compiling {job.model} failed in {report.stage}: {type(error).__name__}: {error}"[:500],
            advice="stay on the raw tier and report this",
            stage=report.stage,
        ) from error


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    forbid_network()
    clock = SystemClock()
    report = Report(int(sys.argv[2]), clock)
    try:
        job = parse_job(sys.argv[3])
        if job.is_idle:
            run_when_idle()
        elif job.is_background:
            os.nice(_BACKGROUND_NICE)
        run(job, report, clock)
    except KenshoError as error:
        report.send({"error": describe_error(error)})
        return
    report.send({"finished": True})


if __name__ == "__main__":
    main()
