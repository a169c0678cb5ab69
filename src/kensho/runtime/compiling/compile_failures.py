"""How often compiling a key has failed lately: who fails again and again is left alone for a while (failure 10).

A model that takes more memory than there is kills its compiler each time; without this every start of every program
would try again. The record is a small file beside the lock of the key. Pure but for two functions at the end.

A clock that was set back makes a record look as if it came from the future: then it bars nothing.
"""

import contextlib
import json
from pathlib import Path

from kensho.base.clock import Seconds
from kensho.base.structs import Struct
from kensho.runtime.model.plain_file import read_plain

FAILURES = 3
"""From the third failure on a key is barred: the second attempt of the first load may have met the same bad moment."""
BARRED_S: Seconds = 3600.0
"""Guess: long enough that a broken model costs nothing, short enough that a mended machine is noticed."""
_MAX_BYTES = 4096
_MAX_REASON = 300
_MAX_NAME = 200


class CompileFailures(Struct):
    """What is remembered of a key. `at_wall_s`: when it failed last."""

    count: int
    at_wall_s: Seconds
    stage: str
    reason: str
    model: str = ""
    """Its name and version, for people."""

    def barred_s(self, now_wall_s: Seconds) -> Seconds:
        """How long it is not tried any more; 0 = it may be tried."""
        age_s = now_wall_s - self.at_wall_s
        return BARRED_S - age_s if self.count >= FAILURES and 0 <= age_s < BARRED_S else 0.0


def add_failure(
    before: CompileFailures | None, now_wall_s: Seconds, stage: str, reason: str, model: str = ""
) -> CompileFailures:
    """One failure more. After the time of a bar one more failure bars again."""
    count = (before.count if before else 0) + 1
    return CompileFailures(count, now_wall_s, stage[:_MAX_NAME], reason[:_MAX_REASON], model[:_MAX_NAME])


def parse_failures(data: bytes) -> CompileFailures | None:
    """The record in these bytes; None if there is anything odd about them. Never raises."""
    try:
        count, at_wall_s, *texts = json.loads(data)
        stage, reason, model = texts if len(texts) == 3 else (*texts, "")  # those of before had no name
    except (ValueError, TypeError, RecursionError):
        return None
    is_good = (
        type(count) is int and type(at_wall_s) is float and all(isinstance(t, str) for t in (stage, reason, model))
    )
    return CompileFailures(count, at_wall_s, stage, reason, model) if is_good else None


def dump_failures(record: CompileFailures) -> bytes:
    return json.dumps([record.count, record.at_wall_s, record.stage, record.reason, record.model]).encode()


def read_failures(path: Path) -> CompileFailures | None:
    """The record in the file `path`, None if there is none that can be read."""
    try:
        return parse_failures(read_plain(path, _MAX_BYTES))
    except OSError:
        return None


def write_failures(path: Path, record: CompileFailures) -> None:
    """Only a hint: a disk that refuses it costs compiles, and no answer."""
    with contextlib.suppress(OSError):
        path.write_bytes(dump_failures(record))
