"""Whatever of the un-synced survives a power cut, at any moment: old or new, complete; what was reported is durable.

And the proof that this can fail: an fsync of the code that does nothing is noticed, whichever it is.
"""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kensho.base.errors import ConfigError
from kensho.testing.disk import Stopped
from kensho.testing.power_cut import Cut, PowerCutDisk
from kensho.testing.rehearsal import OPERATIONS

REPORTS_WITHOUT_WRITING = frozenset({"repair"})
"""A repair after a killed one can find everything right already, and then promises nothing."""


def _work(ground: Any, operation: str, **options: Any) -> PowerCutDisk:
    """The operation, on a disk that remembers; `dies_at`: ended there, and begun anew by another process."""
    base = ground.fresh(operation)
    disk = PowerCutDisk(base, **options)
    act = OPERATIONS[operation].act
    try:
        act(ground.stage, base / "root", disk)
    except Stopped:
        disk.revive()
        with suppress(ConfigError):  # a version that is published already
            act(ground.stage, base / "root", disk)
    shutil.rmtree(base)
    return disk


def _broken(ground: Any, operation: str, cuts: Iterator[Cut], *, is_twice: bool = False) -> str | None:
    """The first cut after which something is wrong, and what. Twice: only cuts after all had returned."""
    found = ground.folder / "found"
    for cut in cuts:
        if is_twice and not cut.is_after_all:
            return None
        try:
            cut.restore(found)
            look = OPERATIONS[operation].look(ground.stage, found / "root")
            if cut.is_after_all and not look.is_new and not (is_twice and operation in REPORTS_WITHOUT_WRITING):
                return f"{operation}, {cut.name}: it had returned, and is not durable"
        except Exception as error:
            return f"{operation}, {cut.name}: {error!r}"
        finally:
            shutil.rmtree(found)
    return None


def _twice(ground: Any, operation: str, stride: int, ignored: str | None = None) -> str | None:
    """Killed before every `stride`-th sync, done again by another process, then the power fails."""
    for dies_at in _work(ground, operation).sync_steps[::stride]:
        disk = _work(ground, operation, dies_at=dies_at, ignored=ignored)
        assert disk.was_killed
        if broken := _broken(ground, operation, disk.cuts(seeds=0), is_twice=True):
            return f"killed after step {dies_at}, then {broken}"
    return None


@pytest.mark.parametrize("seeds", [pytest.param(8, marks=pytest.mark.full_sweep), 1], ids=["full", "sample"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.real
def test_whatever_a_power_cut_leaves_is_old_or_new(ground: Any, operation: str, seeds: int) -> None:
    assert not _broken(ground, operation, _work(ground, operation).cuts(seeds=seeds))


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.full_sweep), 4], ids=["full", "sample"])
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.real
def test_what_a_killed_process_left_unsynced_is_synced_by_the_next(ground: Any, operation: str, stride: int) -> None:
    assert not _twice(ground, operation, stride)


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.full_sweep), 12], ids=["full", "sample"])
@pytest.mark.real
def test_removing_any_fsync_is_noticed(ground: Any, stride: int) -> None:
    sites: set[str] = set()
    for operation in OPERATIONS:
        plain = _work(ground, operation)
        again = [_work(ground, operation, dies_at=step) for step in plain.sync_steps[-2:]]  # what was left is found
        sites = sites.union(plain.sites, *(disk.sites for disk in again))
    assert len(sites) > 15
    unnoticed = []
    for site in sorted(sites)[::stride]:
        noticed = next(filter(None, _without(ground, site)), None)
        print(f"{site:55} {noticed}")
        if not noticed:
            unnoticed.append(site)
    assert not unnoticed, "nothing misses them; why are they there?"


def _without(ground: Any, site: str) -> Iterator[str | None]:
    """What is wrong without it: the cheapest ways to find out first."""
    done = {operation: _work(ground, operation, ignored=site) for operation in OPERATIONS}
    for operation, disk in done.items():
        yield _broken(ground, operation, disk.cuts(seeds=0), is_twice=True)
    for operation in OPERATIONS:
        yield _twice(ground, operation, 1, site)
    for operation, disk in done.items():
        yield _broken(ground, operation, disk.cuts(seeds=2))


def test_a_disk_that_forgets_is_a_disk(tmp_path: Path) -> None:
    """What survives in each of the three simple fates, written out."""
    disk = PowerCutDisk(tmp_path)
    fd = disk.open_write(tmp_path / "a")
    disk.write(fd, b"x" * 2000, 0)
    disk.fsync(fd)
    disk.write(fd, b"y" * 2000, 0)
    disk.close(fd)
    disk.fsync_folder(tmp_path)
    disk.rename(tmp_path / "a", tmp_path / "b")
    found = {}
    for number, cut in enumerate(disk.cuts(seeds=0)):
        if cut.is_after_all:
            cut.restore(tmp_path / f"cut{number}")
            [(name, data)] = [(p.name, p.read_bytes()) for p in (tmp_path / f"cut{number}").iterdir()]
            found[cut.name.partition(", ")[2]] = (name, data[:1], len(data))
    assert found == {
        "nothing survives": ("a", b"x", 2000),
        "names survive, data does not": ("b", b"x", 2000),
        "data survives, names do not": ("a", b"y", 2000),
    }
