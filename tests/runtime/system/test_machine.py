"""The machine's part of a graph key must not change while the machine stays the same."""

import importlib.metadata
import platform
import sys
from pathlib import Path

from kensho.runtime.system.machine import engine_version, parse_cpu_features, read_machine

X86 = "processor\t: 0\nmodel name\t: X\nflags\t\t: fpu avx2 sse4_1 avx512_vnni lm\n\nprocessor\t: 1\nflags\t: fpu\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50\nFeatures\t: fp asimd crc32 asimddp\n"


def test_only_the_flags_that_kernels_are_chosen_by_are_kept() -> None:
    assert parse_cpu_features(X86) == ("avx2", "avx512_vnni", "sse4_1")
    assert parse_cpu_features(ARM) == ("asimd", "asimddp")
    assert parse_cpu_features("") == ()


def test_an_unreadable_cpuinfo_gives_no_features(tmp_path: Path) -> None:
    machine = read_machine(tmp_path / "absent")
    assert machine.cpu_features == ()
    assert machine.engine_version


def test_the_engine_s_version_is_that_of_its_metadata(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_tools-9.9.dist-info").mkdir()
    folders = [str(tmp_path / "absent"), str(tmp_path), *sys.path]
    assert engine_version(folders) == engine_version([]) == importlib.metadata.version("onnxruntime")
    (tmp_path / "onnxruntime-9.9.dist-info").mkdir()
    assert engine_version(folders) == "9.9"


def test_the_machine_is_named_as_the_platform_module_names_it() -> None:
    machine = read_machine()
    assert (machine.arch, machine.system) == (platform.machine(), platform.system().lower())
