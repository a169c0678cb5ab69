"""What was verified of a cached graph and when it was last used, as a small file inside the entry. Pure.

Hashing 280 MB costs 150 ms, so every byte is hashed once in each boot of the machine and then trusted for a week, as
long as (device, inode, size, mtime, ctime) of each file stay what they were; no program can set ctime. What the disk
itself forgets shows in none of them: that is why the trust ends. The record lies inside the entry, so that it goes when
the entry goes. It is a hint: an unreadable one costs one more hashing.

`used` is a counter, not a time: a clock that was wrong once must not decide what is evicted.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence

from kensho.base.clock import Seconds
from kensho.base.ids import GraphKey
from kensho.base.structs import Struct

RECORD_FILE = "verified.json"
MAX_RECORD_BYTES = 16384
TRUSTED_FOR_S: Seconds = 7 * 86400.0
"""As the scrub of delivered files (guess)."""
_FORMAT = 1

Stamp = tuple[int, int, int, int, int]
"""device, inode, size, mtime_ns, ctime_ns"""


class GraphRecord(Struct):
    files: Mapping[str, Stamp]
    """What each file was when its bytes were hashed and right; the header too."""
    used: int
    boot: str = ""
    """The boot of the machine in which the bytes were hashed and the graph passed its self-test; empty: it has not."""
    at_wall_s: Seconds = 0.0
    """When that was."""


class CachedGraph(Struct):
    """One line of the cache's list."""

    key: GraphKey
    size_bytes: int
    used: int
    """Rises with every use of any entry: the lowest was used longest ago."""
    is_pinned: bool
    used_at_wall_s: Seconds | None = None
    """For people only: a clock may have been wrong."""
    is_newer: bool = False
    """A later Kensho made it, and does not count its uses here."""


def stamp_of(stat: os.stat_result) -> Stamp:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def dump_record(record: GraphRecord) -> bytes:
    document = {
        "format": _FORMAT,
        "used": record.used,
        "files": {name: list(stamp) for name, stamp in record.files.items()},
        "boot": record.boot,
        "at": record.at_wall_s,
    }
    return json.dumps(document, sort_keys=True).encode()


def parse_record(data: bytes) -> GraphRecord | None:
    """The record in these bytes, None if there is anything odd about them. Never raises."""
    try:
        document = json.loads(data)
        if document["format"] != _FORMAT or type(document["used"]) is not int:
            return None
        files = {str(name): _stamp(values) for name, values in document["files"].items()}
        # A record of before these two vouches for nothing, but for the use.
        boot, at_wall_s = document.get("boot", ""), document.get("at", 0.0)
        if not isinstance(boot, str) or isinstance(at_wall_s, bool):
            return None
        return GraphRecord(files, document["used"], boot, float(at_wall_s))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


def _stamp(values: Sequence[int]) -> Stamp:
    device, inode, size, mtime_ns, ctime_ns = values
    return (device, inode, size, mtime_ns, ctime_ns)


def is_trusted(record: GraphRecord, files: Mapping[str, Stamp], boot: str, now_wall_s: Seconds) -> bool:
    """Whether the files, of which the kernel says `files` now, need no hashing. A clock that was set back: they do."""
    if not boot or record.boot != boot or record.files != files:
        return False
    return 0 <= now_wall_s - record.at_wall_s < TRUSTED_FOR_S


def choose_evictions(entries: Iterable[CachedGraph], limit_bytes: int) -> list[GraphKey]:
    """Which entries to remove so that the rest fits into `limit_bytes`: longest unused first, pinned ones never.

    A later Kensho's come last: when it returns it should find them, but not at the price of passing the bound.
    """
    entries = sorted(entries, key=lambda entry: (entry.is_newer, entry.used))
    total = sum(entry.size_bytes for entry in entries)
    chosen = []
    for entry in entries:
        if total <= limit_bytes:
            break
        if not entry.is_pinned:
            chosen.append(entry.key)
            total -= entry.size_bytes
    return chosen
