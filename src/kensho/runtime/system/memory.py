"""How much memory may still be taken on this machine: by the kernel's own estimate and by the limits of the cgroups.

In a container the machine's free memory says nothing: the cgroup's limit ends the process (failure 15 of the graph
cache). `parse_*` are pure; `read_memory` is the edge. Costs some 20 small reads, under a millisecond.
"""

from collections.abc import Sequence
from pathlib import Path

from kensho.runtime.system.cgroups import cgroup_folders, read_small

_FILES = (
    # limit, usage, page cache: it counts as usage (a model that was just downloaded fills it), and is given back
    ("memory.max", "memory.current", ("inactive_file", "active_file")),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


def read_memory(root: Path = Path("/")) -> int:
    """Bytes that may still be taken. What cannot be read sets no bound; with nothing readable: 2**62."""
    rooms = [parse_available(read_small(root / "proc/meminfo"))]
    rooms += [_room(folder) for folder in cgroup_folders(root, "memory")]
    return min((room for room in rooms if room is not None), default=1 << 62)


def parse_available(meminfo: str) -> int | None:
    """MemAvailable of /proc/meminfo, in bytes."""
    for line in meminfo.splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "MemAvailable:" and words[1].isdecimal():
            return int(words[1]) * 1024
    return None


def parse_room(limit: str, usage: str, stat: str, reclaimable: Sequence[str]) -> int | None:
    """What a cgroup leaves, from the text of its files; None: it sets no limit, or says nothing."""
    if not limit.strip().isdecimal() or not usage.strip().isdecimal():
        return None
    values = dict(line.split(" ", 1) for line in stat.splitlines() if line.count(" ") == 1)
    back = [values.get(name, "0") for name in reclaimable]
    return max(0, int(limit) - int(usage) + sum(int(text) for text in back if text.isdecimal()))


def _room(folder: Path) -> int | None:
    for limit, usage, reclaimable in _FILES:
        text = read_small(folder / limit)
        if text:
            return parse_room(text, read_small(folder / usage), read_small(folder / "memory.stat"), reclaimable)
    return None
