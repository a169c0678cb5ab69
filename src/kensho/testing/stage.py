"""The ground on which operations are rehearsed: published releases of a tiny model, and what a look can find."""

import os
import shutil
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from kensho.base.structs import Struct
from kensho.delivery.checker import verify
from kensho.delivery.disk import Disk
from kensho.delivery.repository import resign
from kensho.testing.client import FIRST, NOW, SECOND, Client, model_files, weights
from kensho.testing.memory_source import read_folder
from kensho.testing.power_cut import PowerCutDisk
from kensho.testing.repository import SimulatedRepository

Content = Mapping[str, bytes]
FILES: Final[Mapping[str, Content]] = {
    "1.0": model_files(FIRST),
    "2.0": model_files(SECOND, extra_json=b"{}"),
    "3.0": model_files(weights(9, count=3)),
}
DAMAGED_AT: Final = 70_000
"""Offset of the byte that is wrong before a repair: in the middle of the fourth tensor."""


class Stage:
    """Repositories of voice 1.0, 1.0 to 2.0, 1.0 to 3.0; in `resigned` the last has another root, too.

    The folder can be opened again by another process.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        is_new = not scratch.exists()
        if is_new:
            scratch.mkdir(parents=True)
        self.first = SimulatedRepository(scratch / "1", now=NOW)
        if is_new:
            self.first.publish("voice", "1.0", FILES["1.0"])
        self.second = self._grown(self.first, "2", "2.0", is_new=is_new)
        self.third = self._grown(self.second, "3", "3.0", is_new=is_new)
        self.resigned = self._grown(self.third, "4", None, is_new=is_new)
        if is_new:
            later = NOW + timedelta(days=1)
            resign(self.resigned.folder, scratch / "4" / "keys", now=later, expires_days=3650)

    def _grown(
        self, before: SimulatedRepository, name: str, version: str | None, *, is_new: bool
    ) -> SimulatedRepository:
        folder = self.scratch / name
        if not is_new:
            return SimulatedRepository(folder, now=NOW)
        made = before.copy(folder)
        if version:
            made.publish("voice", version, FILES[version])
        return made

    def client(self, root: Path, disk: Disk | None = None) -> Client:
        client = Client(root, self.first, disk=disk)
        if isinstance(disk, PowerCutDisk):
            disk.watch(client.store)
        return client


class Look(Struct):
    """What was found. `is_new`: the operation counts as done. `bytes_fetched` by doing it again."""

    is_new: bool
    bytes_fetched: int = 0


class Operation(Struct):
    prepare: Callable[[Stage, Path], None]
    act: Callable[[Stage, Path, Disk], None]
    look: Callable[[Stage, Path], Look]


def hold(rule: bool, found: object) -> None:
    """An assertion that is not switched off by `python -O`."""
    if not rule:
        raise AssertionError(found)


def check_content(client: Client) -> None:
    """Every listed version has the published bytes, and `verify --full` says so."""
    for release in client.store.state.releases("voice"):
        found = read_folder(client.store.versions.path("voice", release.version))
        hold(found == FILES[release.version], f"{release.version} is not what was published")
    report = verify(client.store, is_full=True, clock=client.clock, emit=client.events.append)
    hold(not report.damaged, report.damaged)


def copy_tree(source: Path, target: Path) -> None:
    """As `cp -a`: files that are one file by two names are so in the copy, too."""
    linked: dict[int, Path] = {}
    target.mkdir(parents=True)
    for folder, names, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        for name in names:
            (here / name).mkdir()
        for name in files:
            inode = (Path(folder) / name).stat().st_ino
            if inode in linked:
                (here / name).hardlink_to(linked[inode])
            else:
                shutil.copy2(Path(folder) / name, here / name)
                linked[inode] = here / name
