"""What a command says, for people and for programs.

For people: data on stdout, progress and notes on stderr, a progress bar only on a terminal. With `--json`: JSON lines
on stdout, `{"type":"progress",...}` at most ten a second, and exactly one last line `{"type":"summary",...}`.
"""

import json
import sys
from collections.abc import Mapping
from typing import Protocol

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import KenshoError
from kensho.base.events import CompileStage, DownloadProgress, Event
from kensho.base.units import size_text

PROGRESS_INTERVAL_S: Seconds = 0.1
BAR_WIDTH = 24


class Voice(Protocol):
    """Where words go: the terminal, a file, a daemon's client."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class Output:
    """One command's voice. `is_json` chooses programs or people; `is_quiet` silences notes and progress."""

    def __init__(
        self, *, is_json: bool, is_quiet: bool, clock: Clock, stdout: Voice | None = None, stderr: Voice | None = None
    ) -> None:
        self.is_json = is_json
        self.is_quiet = is_quiet
        self._clock = clock
        self._stdout: Voice = stdout or sys.stdout
        self._stderr: Voice = stderr or sys.stderr
        self._is_terminal = self._stderr.isatty()
        self._last_progress_s = -PROGRESS_INTERVAL_S
        self._has_bar = False
        self._is_mid_line = False
        self._is_over = False

    def data(self, text: str) -> None:
        """A line of the answer, for people."""
        if not self.is_json:
            self.clear_bar()
            print(text, file=self._stdout, flush=True)
            self._is_mid_line = False

    def piece(self, text: str) -> None:
        """A piece of a streamed answer, for people: no newline, shown at once."""
        if not self.is_json:
            self.clear_bar()
            print(text, end="", file=self._stdout, flush=True)
            self._is_mid_line = True

    def note(self, text: str) -> None:
        """Something worth knowing that is not data."""
        if not self.is_json and not self.is_quiet:
            self.clear_bar()
            print(text, file=self._stderr, flush=True)

    def on_event(self, event: Event) -> None:
        """A telemetry listener: warnings become notes, progress becomes a bar or a JSON line."""
        if isinstance(event, DownloadProgress):
            self.progress(f"pull {event.model}", event.done, event.total, "bytes")
        elif isinstance(event, CompileStage):
            self.progress(f"compile {event.model}: {event.stage}", event.done, event.total, event.unit)
        elif event.level in ("warning", "error"):
            self.note(f"{event.level}: {event.message()}")

    def progress(self, what: str, done: int, total: int, unit: str) -> None:
        """Real progress: `done` of `total` in `unit`. Ends are always shown, the rest at most ten times a second.

        No bar is drawn over an answer that is still being written.
        """
        now = self._clock.monotonic_s()
        if done < total and now - self._last_progress_s < PROGRESS_INTERVAL_S:
            return
        self._last_progress_s = now
        if self.is_json:
            self.json_line({"type": "progress", "what": what, "done": done, "total": total, "unit": unit})
        elif self._is_terminal and not self.is_quiet and not self._is_mid_line:
            share = done / total if total else 1.0
            bar = "#" * int(BAR_WIDTH * share)
            text = f"{what}  [{bar:<{BAR_WIDTH}}] {share:4.0%}  {_amount(done, total, unit)}"
            print(f"\r\x1b[2K{text}", end="", file=self._stderr, flush=True)
            self._has_bar = True

    def summary(self, code: int, keys: Mapping[str, object], error: KenshoError | None = None) -> None:
        """The one last line for programs; for people only an error is printed. What comes after it is not said."""
        self.clear_bar()
        failure: dict[str, object] = {}
        if error is not None:
            failure = {"error": error.code, "message": error.message, "advice": error.advice}
        if self.is_json:
            self.json_line({"type": "summary", "ok": code == 0, "code": code, **keys, **failure})
        elif error is not None:
            print(f"kensho: {error.message}", file=self._stderr)
            if error.advice:
                print(f"        {error.advice}", file=self._stderr, flush=True)
        self._is_over = True

    def clear_bar(self) -> None:
        if self._has_bar:
            print("\r\x1b[2K", end="", file=self._stderr, flush=True)
            self._has_bar = False

    def json_line(self, line: Mapping[str, object]) -> None:
        """One JSON line on stdout, for programs; for people nothing. Nothing after the summary."""
        if self.is_json and not self._is_over:
            print(json.dumps(line, ensure_ascii=False, default=str), file=self._stdout, flush=True)


def _amount(done: int, total: int, unit: str) -> str:
    return f"{size_text(done)} of {size_text(total)}" if unit == "bytes" else f"{done}/{total} {unit}"
