"""How well the graph cache has served, over all programs that use it (row R5; prototype: `getCacheStats`).

One small file in the cache's folder, changed under its own kernel lock. It is for people: a broken or lost file counts
from nothing again, and a disk that refuses it costs no answer.
"""

import fcntl
import json
import os
from pathlib import Path

from kensho.base.clock import Seconds
from kensho.base.structs import Struct, as_dict, replace

STATISTICS_FILE = "statistics.json"
_MAX_BYTES = 4096


class GraphStatistics(Struct):
    """Since the cache's folder was made. A graph that a program still had in memory is not counted here."""

    hits: int = 0
    """Found on disk and good."""
    misses: int = 0
    """Had to be compiled."""
    find_seconds: Seconds = 0.0
    """Of all hits together."""
    compile_seconds: Seconds = 0.0
    """Of all misses together."""

    def as_json(self) -> dict[str, object]:
        """The key `statistics` of `kensho graphs list --json`."""
        return as_dict(self)


def add_hit(before: GraphStatistics, seconds: Seconds) -> GraphStatistics:
    return replace(before, hits=before.hits + 1, find_seconds=before.find_seconds + seconds)


def add_miss(before: GraphStatistics, seconds: Seconds) -> GraphStatistics:
    return replace(before, misses=before.misses + 1, compile_seconds=before.compile_seconds + seconds)


def parse_statistics(data: bytes) -> GraphStatistics:
    """What these bytes say; nothing, where anything about them is odd. Never raises."""
    try:
        document = json.loads(data)
        hits, misses = document["hits"], document["misses"]
        seconds = float(document["find_seconds"]), float(document["compile_seconds"])
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return GraphStatistics()
    return GraphStatistics(hits, misses, *seconds) if type(hits) is type(misses) is int else GraphStatistics()


def read_statistics(folder: Path) -> GraphStatistics:
    try:
        descriptor = os.open(folder / STATISTICS_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return GraphStatistics()
    try:
        return parse_statistics(os.pread(descriptor, _MAX_BYTES, 0))
    except OSError:
        return GraphStatistics()
    finally:
        os.close(descriptor)


def count_load(folder: Path, seconds: Seconds, *, is_hit: bool) -> None:
    """Count one look-up that ended well. Waits for other programs that count (microseconds)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(folder / STATISTICS_FILE, flags, 0o644)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        before = parse_statistics(os.pread(descriptor, _MAX_BYTES, 0))
        after = json.dumps(as_dict((add_hit if is_hit else add_miss)(before, seconds))).encode()
        os.pwrite(descriptor, after, 0)
        os.ftruncate(descriptor, len(after))
    except OSError:
        return
    finally:
        os.close(descriptor)
