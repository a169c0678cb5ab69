"""What circuits are told of the machine: which start of it this is, whether it slept, whether its device is there.

All of it is read from /proc and from clocks, without touching an engine or a driver.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from kensho.app.circuit_file import CircuitFile
from kensho.base.clock import SystemClock
from kensho.resilience.surroundings import MachineSeen, Surroundings
from kensho.runtime.cache.graph_entry import read_boot_id
from kensho.runtime.system.machine import read_machine

_MAX_BYTES = 4096

_KNOWS_SLEEP = hasattr(time, "CLOCK_BOOTTIME")
boot_s = partial(time.clock_gettime, time.CLOCK_BOOTTIME) if _KNOWS_SLEEP else SystemClock.monotonic_s
"""Seconds since the machine was started, its sleep included where the kernel says that. No function of ours around it:
it is read for each request."""


def surroundings(
    memory: CircuitFile, version: str, form_of: Callable[[str], str], root: Path = Path("/")
) -> Surroundings:
    """The edges of the circuits of one version of a model. `form_of`: the tier of an engine."""
    engine = f"{read_machine().engine_version} {version}"
    return Surroundings(look=lambda: look(engine, root), boot_s=boot_s, memory=memory, form_of=form_of)


def look(engine: str, root: Path = Path("/")) -> MachineSeen:
    """`engine`: name and version of the engine's library. The fingerprint changes with a reboot, an update of the
    library, and an update of NVIDIA's kernel module."""
    driver = _first_line(root / "proc/driver/nvidia/version")
    gpus = root / "proc/driver/nvidia/gpus"
    try:
        is_there = any(gpus.iterdir())
    except OSError:
        is_there = False
    return MachineSeen(" | ".join((read_boot_id(root), engine, driver)), is_device_there=is_there)


def _first_line(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_BYTES).partition("\n")[0].strip()
    except OSError:
        return ""
