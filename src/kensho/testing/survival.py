"""What is left of files and folders after a power cut: of the changes that were not synced, those that luck spares.

The rules are told in `power_cut`, whose disk records the changes. Pure, but for `Cut.restore`, which makes a folder.
"""

import random
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from kensho.base.ids import Digest, digest_of
from kensho.base.structs import Struct, field

SECTOR_BYTES: Final = 512
Fate = Literal["lost", "kept", "torn"]
Luck = Callable[[int], Fate]
"""What becomes of something that was not synced, given its moment."""


class File(Struct, frozen=False, eq=False):
    """`content` and `mode` were durable at first; `syncs` are moments of its fsyncs."""

    content: bytes
    mode: int
    inode: tuple[int, int]
    changes: list[tuple[int, int | None, bytes | int]] = field(factory=list)
    """(moment, offset, data), (moment, None, size), or (moment, -1, mode)."""
    syncs: list[int] = field(factory=list)


class Database(Struct, frozen=False, eq=False):
    """SQLite's. `commits`: moment, the whole database, whether it was durable at its return."""

    commits: list[tuple[int, bytes, bool]]


class Folder(Struct, frozen=False, eq=False):
    """`first` was durable at first, `live` is what a running process sees."""

    first: "dict[str, Node]" = field(factory=dict)
    live: "dict[str, Node]" = field(factory=dict)
    changes: "list[tuple[int, str, Node | None]]" = field(factory=list)
    syncs: list[int] = field(factory=list)


Node = File | Folder | Database


class Cut(Struct):
    """One state of the disk. `is_after_all`: the power failed after everything had returned."""

    name: str
    is_after_all: bool
    tree: dict[str, object]
    inodes: dict[tuple[int, int], File]

    def restore(self, target: Path) -> None:
        """Make the folder `target` (new) what was found."""
        made: dict[int, Path] = {}
        self._restore(self.tree, target, made)

    def _restore(self, tree: dict[str, object], target: Path, made: dict[int, Path]) -> None:
        target.mkdir()
        for name, found in tree.items():
            path = target / name
            if isinstance(found, dict):
                self._restore(found, path, made)
            elif isinstance(found, Found):
                if id(found) in made:
                    path.hardlink_to(made[id(found)])
                    continue
                path.write_bytes(found.content)
                path.chmod(found.mode)
                made[id(found)] = path
        for name, found in tree.items():
            if isinstance(found, Found) and found.file is None:
                self._believe(target / name, made)

    def _believe(self, database: Path, made: dict[int, Path]) -> None:
        """Records that vouched for a file before the cut vouch for what is left of it: on a real disk the inode, the
        size and the times can be the same though the data is not."""
        paths = {id(found_file): path for found_file, path in self._by_file(self.tree, made)}
        with sqlite3.connect(database, isolation_level=None) as db:
            for dev, inode, digest in db.execute("SELECT dev, inode, digest FROM records").fetchall():
                file = self.inodes.get((dev, inode))
                path = paths.get(id(file))
                if file is None or path is None or digest_of(_final(file)) != Digest(digest):
                    continue
                now = path.stat()
                db.execute(
                    "UPDATE OR REPLACE records SET dev = ?, inode = ?, size_bytes = ?, mtime_ns = ?, ctime_ns = ?"
                    " WHERE dev = ? AND inode = ?",
                    (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns, dev, inode),
                )
        db.close()

    def _by_file(self, tree: dict[str, object], made: dict[int, Path]) -> Iterator[tuple[File, Path]]:
        for found in tree.values():
            if isinstance(found, dict):
                yield from self._by_file(found, made)
            elif isinstance(found, Found) and found.file is not None and id(found) in made:
                yield found.file, made[id(found)]


class Found(Struct):
    content: bytes
    mode: int
    file: File | None
    """None: a database."""


def _file(file: File, moment: int, luck: Luck) -> Found:
    last = max((sync for sync in file.syncs if sync <= moment), default=-1)
    content, mode = bytearray(file.content), file.mode
    for when, offset, what in file.changes:
        if when > moment:
            break
        fate = "kept" if when <= last else luck(when)
        if fate == "lost":
            continue
        if isinstance(what, bytes):
            data = what if fate == "kept" else what[: len(what) // 2 // SECTOR_BYTES * SECTOR_BYTES]
            at = offset or 0
            if data:
                content.extend(bytes(max(0, at - len(content))))
                content[at : at + len(data)] = data
        elif offset == -1:
            mode = what
        else:
            content = content[:what] + bytes(max(0, what - len(content)))
    return Found(bytes(content), mode & 0o777, file)


def _final(file: File) -> bytes:
    return _file(file, sys.maxsize, kept).content


def _database(database: Database, moment: int, luck: Luck) -> Found:
    content = database.commits[0][1]
    last = max((when for when, _, is_durable in database.commits if is_durable and when <= moment), default=-1)
    for when, data, _ in database.commits:
        if when > moment or (when > last and luck(when) == "lost"):
            break
        content = data
    return Found(content, 0o644, None)


def mark(tree: dict[str, object]) -> object:
    """The same for two trees that hold the same."""
    return tuple(
        (name, mark(found) if isinstance(found, dict) else (digest_of(found.content), found.mode))
        for name, found in tree.items()
        if isinstance(found, dict | Found)
    )


def survivors(folder: Folder, moment: int, data: Luck, names: Luck, files: dict[int, object]) -> dict[str, object]:
    """The folder after a cut: name -> folder, or (content, mode, file)."""
    last = max((sync for sync in folder.syncs if sync <= moment), default=-1)
    entries = dict(folder.first)
    for when, name, node in folder.changes:
        if when > moment or (when > last and names(when) == "lost"):
            break  # in order: what comes after the first one that is lost is lost, too
        entries = {**entries, name: node} if node else without(entries, name)
    found: dict[str, object] = {}
    for name, node in sorted(entries.items()):
        if isinstance(node, Folder):
            found[name] = survivors(node, moment, data, names, files)
        else:
            if id(node) not in files:  # all names of a file share its fate
                files[id(node)] = _file(node, moment, data) if isinstance(node, File) else _database(node, moment, data)
            found[name] = files[id(node)]
    return found


def without(entries: dict[str, Node], name: str) -> dict[str, Node]:
    return {other: node for other, node in entries.items() if other != name}


def lost(when: int) -> Fate:
    return "lost"


def kept(when: int) -> Fate:
    return "kept"


class Mixed:
    def __init__(self, rng: random.Random, *, torn: float) -> None:
        self._rng, self._torn = rng, torn

    def __call__(self, when: int) -> Fate:
        drawn = self._rng.random()
        return "torn" if drawn < self._torn else "lost" if drawn < (1 + self._torn) / 2 else "kept"
