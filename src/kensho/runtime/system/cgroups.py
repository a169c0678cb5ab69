"""Where the kernel says what this process's cgroups grant. Both versions of cgroups, and every group above ours: each
of them may be the narrow one. `cgroup_paths` is pure; `read_small` is the edge: what cannot be read is empty.
"""

from collections.abc import Iterator
from pathlib import Path

_MAX_BYTES = 64 * 1024


def cgroup_folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that may bound our `cpu` or `memory`, ours first; `root` is / but in tests."""
    for path in cgroup_paths(read_small(root / "proc/self/cgroup"), controller):
        yield root / "sys/fs/cgroup" / path


def cgroup_paths(text: str, controller: str) -> list[str]:
    """Their paths below /sys/fs/cgroup, from /proc/self/cgroup. Nothing in the text leads out of that folder."""
    found: list[str] = []
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or not (controller in parts[1].split(",") or parts[1] == ""):
            continue
        names = [name for name in parts[2].split("/") if name not in ("", ".", "..")]
        mount = parts[1] or "."  # version 2 has one tree for all
        found += ["/".join([mount, *names[:count]]) for count in range(len(names), -1, -1)]
    return found


def read_small(path: Path) -> str:
    """The text of a small file of the kernel's, empty if there is none."""
    try:
        with path.open(encoding="ascii", errors="replace") as file:
            return file.read(_MAX_BYTES)
    except OSError:
        return ""
