from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.runtime.system.cgroups import cgroup_paths
from kensho.runtime.system.memory import parse_available, parse_room, read_memory

MEMINFO = "MemTotal:       24105000 kB\nMemFree:  1 kB\nMemAvailable:   2000 kB\n"


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": MEMINFO, "proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_a_limit_the_kernel_s_estimate_is_what_may_be_taken(tmp_path: Path) -> None:
    assert read_memory(machine(tmp_path, "0::/\n", {})) == 2000 * 1024


@pytest.mark.parametrize(
    ("cgroup", "folder", "limit", "usage", "inactive"),
    [
        ("0::/a/b\n", "a", "memory.max", "memory.current", "inactive_file"),
        ("0::/a/b\n", "a/b", "memory.max", "memory.current", "inactive_file"),
        (
            "9:cpu:/x\n4:memory:/a/b\n0::/\n",
            "memory/a/b",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
        (
            "4:memory:/away\n0::/\n",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ],
)
def test_the_narrowest_cgroup_on_the_way_up_bounds_it(
    tmp_path: Path, cgroup: str, folder: str, limit: str, usage: str, inactive: str
) -> None:
    at = f"sys/fs/cgroup/{folder}"
    files = {f"{at}/{limit}": "900000\n", f"{at}/{usage}": "500000\n", f"{at}/memory.stat": f"anon 7\n{inactive} 300\n"}
    files[f"{at}/memory.stat"] += inactive.replace("inactive", "active") + " 20\n"
    assert read_memory(machine(tmp_path, cgroup, files)) == 900000 - 500000 + 320


def test_a_cgroup_that_is_used_up_leaves_nothing_and_one_without_limit_bounds_nothing() -> None:
    assert parse_room("100", "500", "", ["inactive_file"]) == 0
    assert parse_room("max\n", "500", "", ["inactive_file"]) is None


def test_a_machine_that_says_nothing_sets_no_bound(tmp_path: Path) -> None:
    assert read_memory(tmp_path) == 1 << 62


@given(st.text(max_size=200), st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_no_text_makes_the_readers_fail_or_leave_the_folder(text: str, other: str) -> None:
    parse_available(text)
    parse_room(text, other, text, ["inactive_file"])
    assert not any(".." in path.split("/") for path in cgroup_paths(text, "memory"))


def test_this_machine_says_something() -> None:
    assert 0 < read_memory() < 1 << 62
