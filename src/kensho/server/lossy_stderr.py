"""stderr for a process that must never wait for whoever reads it: what does not fit now is lost.

A pipe that nobody reads, or a terminal stopped by Ctrl-S, would else stop the daemon's only thread in a write, with
signals and all. Interpreter and libraries write there too, so `sys.stderr` itself is replaced.
"""

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO, cast

_AT_ONCE = select.PIPE_BUF
"""Of a pipe that poll(2) calls writable, so much is free (pipe(7))."""


class LossyStream(io.TextIOBase):
    """Text to a descriptor, as UTF-8, unbuffered. Never blocks, never raises for what the other end does."""

    def __init__(self, descriptor: int) -> None:
        """The descriptor stays the caller's."""
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def write(self, text: str) -> int:
        data = text.encode("utf-8", "backslashreplace")
        with contextlib.suppress(OSError):  # nobody is there, or the disk is full
            for start in range(0, len(data), _AT_ONCE):
                if not self._poll.poll(0):
                    break
                os.write(self._descriptor, data[start : start + _AT_ONCE])
        return len(text)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor


@contextlib.contextmanager
def lossy_stderr() -> Iterator[TextIO]:
    """`sys.stderr` is one while it lasts."""
    before = sys.stderr
    stream = cast("TextIO", LossyStream(before.fileno()))
    sys.stderr = stream
    try:
        yield stream
    finally:
        sys.stderr = before
