"""What this machine's processor can do, as far as it decides the form of a compiled graph. Linux on any CPU.

`read_machine` is the edge; `parse_cpu_features` is pure. Only instructions that the integer kernels choose by are
kept: the full list changes with the kernel version and would make the graph key volatile.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kensho.base.structs import Struct

_X86 = ("sse4_1", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx_vnni", "avx512_vnni", "amx_int8")
_ARM = ("asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve")
RELEVANT = frozenset(_X86 + _ARM)
"""Flags of x86 (`flags`) and ARM (`Features`) that MLAS, ONNX Runtime's matrix library, dispatches by."""
ENGINE_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Of every process that computes. numpy's pool of threads costs more to start than it gives here (118 -> 64 ms of
import under load). Copied weights in pages of 2 MB save a fifth of a token on the packed tier (docs/adr/0023)."""
_MAX_CPUINFO_BYTES = 64 * 1024
"""One processor's entry is under 3 KiB; the first one is enough."""
_DISTRIBUTION = "onnxruntime-"


class Machine(Struct):
    """The part of a graph key that comes from the machine."""

    arch: str
    system: str
    cpu_features: tuple[str, ...]
    engine_version: str


def read_machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """This machine. Without a readable cpuinfo there are no features: a key of its own, never a wrong one."""
    try:
        with cpuinfo.open(encoding="ascii", errors="replace") as file:
            features = parse_cpu_features(file.read(_MAX_CPUINFO_BYTES))
    except OSError:
        features = ()
    system = os.uname()
    return Machine(system.machine, system.sysname.lower(), features, engine_version(sys.path))


def engine_version(folders: Sequence[str]) -> str:
    """Of the ONNX Runtime that `import` would find in one of these folders.

    Read from the name of its metadata's folder: `importlib.metadata` does it in 20 ms of CPU (it imports `email`), the
    engine itself in 40, and this is on the start path. Metadata is asked where no folder's name says it.
    """
    for folder in folders:
        with suppress(OSError):
            for name in os.listdir(folder or "."):  # noqa: PTH208 - names, not paths
                if name.startswith(_DISTRIBUTION) and name.endswith(".dist-info"):
                    return name.removeprefix(_DISTRIBUTION).removesuffix(".dist-info")
    from importlib.metadata import version

    return version("onnxruntime")


def parse_cpu_features(cpuinfo: str) -> tuple[str, ...]:
    """The relevant flags of the first processor in the text of /proc/cpuinfo, sorted."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return tuple(sorted(RELEVANT & set(value.split())))
    return ()
