"""The machine's part of a graph key must not change while the machine stays the same."""

from pathlib import Path

from kensho.runtime.machine import parse_cpu_features, read_machine

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
