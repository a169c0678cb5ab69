"""What libraries log, and what fails in callbacks of the event loop, becomes events of ours instead of text on stderr.

A daemon's stderr may be a pipe that nobody reads: a thousand tracebacks would fill it, and the daemon would wait for
ever in a write. The same words are gathered and told at most once a minute. Only what a library wrote in its source is
told, never the values that it put in: those could be a user's.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from kensho.base.clock import Seconds
from kensho.base.events import Emit, ErrorRaised, LibraryWarned
from kensho.base.structs import Struct
from kensho.server.gathering import Gathering
from kensho.telemetry.record import frames_of

EVERY_S: Seconds = 60.0
_MAX_WORDS = 200


class _Words(Struct):
    library: str
    words: str
    error: str = ""
    frames: tuple[str, ...] = ()


@contextmanager
def library_words_heard(emit: Emit) -> Iterator[None]:
    """While it lasts. On the thread of the running loop."""
    loop, root = asyncio.get_running_loop(), logging.getLogger()
    heard: Gathering[_Words] = Gathering(lambda counts: _tell(counts, emit), every_s=EVERY_S)
    ear = _Ear(loop, heard)
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: heard.add(_of_context(context)))
    root.addHandler(ear)
    try:
        yield
    finally:
        root.removeHandler(ear)
        loop.set_exception_handler(before)
        heard.flush()


class _Ear(logging.Handler):
    """Takes what any thread logs as a warning or worse."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heard: Gathering[_Words]) -> None:
        super().__init__(logging.WARNING)
        self._loop = loop
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        words = _words(record.name, str(record.msg), record.exc_info[1] if record.exc_info else None)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._heard.add, words)


def _of_context(context: Mapping[str, object]) -> _Words:
    error = context.get("exception")
    return _words("asyncio", str(context.get("message")), error if isinstance(error, BaseException) else None)


def _words(library: str, said: str, error: BaseException | None) -> _Words:
    words = said.strip().partition("\n")[0][:_MAX_WORDS]
    if error is None:
        return _Words(library, words)
    name = type(error).__name__
    name += f" {error.errno}" if isinstance(error, OSError) and error.errno else ""
    return _Words(library, words, name, frames_of(error.__traceback__))


def _tell(counts: Mapping[_Words, int], emit: Emit) -> None:
    for said, times in counts.items():
        if said.error:
            reason = f"{said.library}: {said.words}: {said.error}, {times} times"
            emit(ErrorRaised(code="library", reason=reason, frames=said.frames))
        else:
            emit(LibraryWarned(library=said.library, words=said.words, times=times))
