"""Threads follow what a container may use, not what its machine has."""

import os
from pathlib import Path

import pytest

from kensho.runtime.system.cgroups import cgroup_paths
from kensho.runtime.system.cpus import parse_cfs, parse_max, read_cpus, usable


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("max 100000\n", None),
        ("100000 100000\n", 1.0),
        ("250000 100000\n", 2.5),
        ("", None),
        ("x 1", None),
        ("1 0", None),
    ],
)
def test_a_group_s_time_of_version_2(text: str, cpus: float | None) -> None:
    assert parse_max(text) == cpus


@pytest.mark.parametrize(
    ("quota", "period", "cpus"), [("-1\n", "100000\n", None), ("50000\n", "100000\n", 0.5), ("", "", None)]
)
def test_a_group_s_time_of_version_1(quota: str, period: str, cpus: float | None) -> None:
    assert parse_cfs(quota, period) == cpus


def test_every_group_above_ours_may_be_the_narrow_one() -> None:
    assert cgroup_paths("0::/a/b\n", "cpu") == ["./a/b", "./a", "."]
    assert cgroup_paths("5:cpu,cpuacct:/d/x\n4:memory:/d/x\n", "cpu") == [
        "cpu,cpuacct/d/x",
        "cpu,cpuacct/d",
        "cpu,cpuacct",
    ]
    assert cgroup_paths("0::/../../outside\n", "cpu") == ["./outside", "."]


def test_one_processor_s_time_on_a_large_machine_is_one_thread() -> None:
    assert usable(64, [None, 1.0]) == 1
    assert usable(64, [2.9, 8.0]) == 2
    assert usable(64, [0.25]) == 1
    assert usable(3, [None, 16.0]) == 3
    assert usable(64, []) == 64


def container(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        (root / "sys/fs/cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files"),
    [
        ("0::/\n", {"cpu.max": "100000 100000\n"}),
        ("0::/pod/own\n", {"pod/own/cpu.max": "max 100000\n", "pod/cpu.max": "150000 100000\n"}),
        (
            "3:cpu,cpuacct:/p\n",
            {"cpu,cpuacct/p/cpu.cfs_quota_us": "99999", "cpu,cpuacct/p/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_the_limit_is_read_from_where_the_kernel_says_it(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert read_cpus(container(tmp_path, groups, files)) == 1


def test_what_cannot_be_read_sets_no_bound(tmp_path: Path) -> None:
    assert read_cpus(tmp_path) == len(os.sched_getaffinity(0))
