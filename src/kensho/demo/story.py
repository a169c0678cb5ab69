"""`kensho demo`: the whole story on real parts, every step checked.

It plays in a folder of its own, which it empties first: a demonstration that was killed at any moment leaves nothing
that the next one trips over. Nothing is simulated: the repository, the origin, the store, the compile child, the engine
hosts and the kill are what a user has.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import KenshoError, StorageError, StoreBusy
from kensho.base.events import Event, StepFinished
from kensho.base.structs import Struct, replace
from kensho.demo import delivery_steps, runtime_steps
from kensho.demo.stage import Stage
from kensho.settings import Settings

Step = Callable[[Stage], str]

STEPS: tuple[tuple[str, str, Step], ...] = (
    ("publish", "A model is cut, signed and put on a web server", delivery_steps.publish_first),
    ("pull", "A fresh store downloads and verifies it", delivery_steps.pull_first),
    ("compile", "It is compiled for this machine, once", runtime_steps.compile_for_this_machine),
    ("answer", "It answers, in an engine process of its own", runtime_steps.answer),
    ("start again", "A new process starts from the graph cache", runtime_steps.start_again),
    ("damage", "Its file is damaged on disk, found and mended", delivery_steps.damage_and_repair),
    ("offline", "The web server is gone", runtime_steps.offline),
    ("crash", "The engine is killed in the middle of an answer", runtime_steps.crash),
    ("update", "A new version comes, and the old one again", delivery_steps.update_and_roll_back),
)


class Voice(Protocol):
    """How the story is told; the CLI's output is one."""

    def data(self, text: str) -> None: ...
    def piece(self, text: str) -> None: ...
    def on_event(self, event: Event) -> None: ...


class StepReport(Struct):
    name: str
    is_ok: bool
    seconds: Seconds
    result: str


class Report(Struct):
    steps: tuple[StepReport, ...]
    seconds: Seconds
    log: Path
    log_lines: int
    error: KenshoError | None

    @property
    def is_ok(self) -> bool:
        return self.error is None and len(self.steps) == len(STEPS)

    def lines(self) -> list[str]:
        """The one-page report."""
        rows = [
            f"  {'ok' if step.is_ok else 'FAILED':<7}{step.name:<13}{step.seconds:6.2f} s   {step.result}"
            for step in self.steps
        ]
        verdict = "Every step held." if self.is_ok else "A step did not hold."
        return [
            "What happened",
            *rows,
            f"{verdict} {self.seconds:.1f} s in all.",
            f"The log, one JSON object a line ({self.log_lines} events): {self.log}",
        ]


def tell(settings: Settings, voice: Voice, *, clock: Clock, folder: Path) -> Report:
    """Play all steps in `folder` (emptied first), stopping at the first that does not hold.

    Raises StoreBusy if another demonstration plays there. Takes 10 to 40 s; leaves the folder for a look around.
    """
    with _own(folder):
        stage = Stage(
            folder=folder,
            settings=replace(settings, store=folder / "store"),
            clock=clock,
            say=lambda text: voice.data(f"    {text}"),
            show=voice.piece,
            on_event=lambda event: voice.on_event(event) if event.level == "debug" else None,  # progress, no warnings
        )
        begin_s = clock.monotonic_s()
        done: list[StepReport] = []
        error: KenshoError | None = None
        try:
            for number, (name, title, step) in enumerate(STEPS, 1):
                voice.data(f"{number}. {title}")
                report, error = _play(stage, name, step)
                voice.data(f"    {'ok' if report.is_ok else 'FAILED'}: {report.result} ({report.seconds:.2f} s)")
                done.append(report)
                if error is not None:
                    break
        finally:
            stage.close_origin()
        lines = stage.log.read_bytes().count(b"\n") if stage.log.exists() else 0
        return Report(tuple(done), clock.monotonic_s() - begin_s, stage.log, lines, error)


def _play(stage: Stage, name: str, step: Step) -> tuple[StepReport, KenshoError | None]:
    stage.events.clear()
    begin_s = stage.clock.monotonic_s()
    error: KenshoError | None = None
    try:
        result = step(stage)
    except KenshoError as failure:
        error, result = failure, str(failure)
    report = StepReport(name, error is None, stage.clock.monotonic_s() - begin_s, result)
    with stage.open_app() as app:
        app.emit(StepFinished(step=name, outcome="ok" if report.is_ok else "failed", seconds=report.seconds))
    return report, error


@contextmanager
def _own(folder: Path) -> Iterator[None]:
    """The folder, empty and ours alone. The lock lies beside it, so that emptying does not remove it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            f"the demonstration cannot use {folder}: {error.strerror}", advice="give another folder with --keep"
        ) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreBusy(
                f"another demonstration plays in {folder}", advice="wait for it, or give another folder with --keep"
            ) from error
        _empty(folder)
        yield
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    """Only what a demonstration made is ever removed: a folder that holds something else is refused."""
    if folder.exists():
        ours = {"model-v1", "model-v2", "keys", "repository", "store"}
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in ours)
        if strangers:
            raise StorageError(
                f"{folder} holds {strangers[0]!r}, which no demonstration made",
                advice="give an empty folder with --keep",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
