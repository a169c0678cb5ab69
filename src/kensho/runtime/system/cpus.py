"""How many processors this process may really use: its affinity, and the time that its cgroups grant.

A container with one processor's time on a machine of 64 sees 64 processors. As many threads would be stopped together,
in the middle of a product, for most of every period. `parse_*` and `usable` are pure; `read_cpus` is the edge: some 10
small reads.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kensho.runtime.system.cgroups import cgroup_folders, read_small


def read_cpus(root: Path = Path("/")) -> int:
    """Processors that may be kept busy, at least 1. What cannot be read sets no bound."""
    return usable(
        len(os.sched_getaffinity(0)), (quota for folder in cgroup_folders(root, "cpu") for quota in _quotas(folder))
    )


def usable(affinity: int, quotas: Iterable[float | None]) -> int:
    """The narrowest of them, rounded down: a thread for half a processor makes the others wait half of the time."""
    return max(1, min([affinity, *(int(quota) for quota in quotas if quota is not None)]))


def parse_max(text: str) -> float | None:
    """Processors in cpu.max of a cgroup (version 2): microseconds of each period, or max. None: no limit."""
    match text.split():
        case [quota, period]:
            return _share(quota, period)
        case _:
            return None


def parse_cfs(quota: str, period: str) -> float | None:
    """The same for cpu.cfs_quota_us and cpu.cfs_period_us (version 1), where -1 is no limit."""
    return _share(quota.strip(), period.strip())


def _share(quota: str, period: str) -> float | None:
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        return int(quota) / int(period)
    return None


def _quotas(folder: Path) -> Iterator[float | None]:
    yield parse_max(read_small(folder / "cpu.max"))
    yield parse_cfs(read_small(folder / "cpu.cfs_quota_us"), read_small(folder / "cpu.cfs_period_us"))
