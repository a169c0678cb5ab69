"""A disk whose power can be cut: what was written and not synced may be lost, in part, in any mixture.

    disk = PowerCutDisk(base)                    # everything under `base` is durable now
    ...                                          # work on it; files really change
    for cut in disk.cuts(seeds=3):
        cut.restore(folder)                      # what a machine could find after its power failed there

SIGKILL keeps the page cache, so it never shows a missing fsync; this does. The rules, which are those of POSIX and
more pessimistic than those of the usual file systems:

- of writes, truncations and modes of a file since its last fsync any subset survives; a write may survive in part
  (whole sectors from its beginning);
- of the creations, links, renames and removals in a folder since its last fsync_folder, the first ones survive, any
  number of them; each folder by itself, so that a file that was renamed from one folder into another can be found in
  both, or in neither;
- SQLite's own files are a unit. Assumed of it, and not tried here: it orders its writes and syncs itself, so that a
  commit is there or not; one with synchronous=FULL is there from its return on, those with NORMAL survive as a first
  part (`watch` tells the two apart). The system-call sweep kills it in the middle of its own calls.

An fsync that is told to do nothing (`ignored`) stands for one that was forgotten: a test must then fail. A process
that dies first (`dies_at`) leaves names and bytes that the next one finds, and that are not durable yet.
"""

import os
import random
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kensho.delivery.disk import RealDisk
from kensho.delivery.state import State
from kensho.delivery.store import Store
from kensho.testing.disk import Stopped
from kensho.testing.survival import Cut, Database, File, Folder, Luck, Mixed, Node, kept, lost, mark, survivors, without


class PowerCutDisk(RealDisk):
    """Satisfies `Disk`; one thread may change things. `sites` has each place of the code that synced something."""

    def __init__(self, base: Path, *, ignored: str | None = None, dies_at: int | None = None) -> None:
        self._base, self._ignored, self._steps_left = base, ignored, dies_at
        self._moment = 0
        self._open: dict[int, File] = {}
        self._locks: set[int] = set()
        self._inodes: dict[tuple[int, int], File] = {}
        self.sites: set[str] = set()
        self.was_killed = False
        self.sync_steps: list[int] = []
        """How many changing steps there were before each fsync and fsync_folder."""
        self._steps = 0
        self._root = self._scan(base)

    def revive(self) -> None:
        """The machine starts another process: descriptors and locks of the dead one are gone, its page cache is not."""
        self._steps_left = None
        self.was_killed = True
        for fd in [*self._open, *self._locks]:
            self.close(fd)

    def watch(self, store: Store) -> None:
        """From now on the commits of this store's database are known."""
        path = store.root / "state.db"
        store.state.close()
        store.state = _WatchedState(path, self)

    def cuts(self, *, seeds: int) -> "Iterator[Cut]":
        """Each different thing that can be found after a cut, the last moment first. At each moment: nothing
        un-synced survives; only names; only data; and `seeds` mixtures."""
        seen: set[object] = set()
        for moment in range(self._moment, -1, -1):
            lucks: list[tuple[str, Luck, Luck]] = [
                ("nothing survives", lost, lost),
                ("names survive, data does not", lost, kept),
                ("data survives, names do not", kept, lost),
            ]
            for seed in range(seeds):
                rng = random.Random(1000 * moment + seed)  # noqa: S311 - a game of chance that can be repeated
                lucks.append((f"mixture {seed}", Mixed(rng, torn=0.3), Mixed(rng, torn=0.0)))
            for name, data, names in lucks:
                tree = survivors(self._root, moment, data, names, {})
                if (found := mark(tree)) not in seen:
                    seen.add(found)
                    yield Cut(f"moment {moment} of {self._moment}, {name}", moment == self._moment, tree, self._inodes)

    # --- what changes ---

    def open_write(self, path: Path) -> int:
        self._step()
        is_new = self._node(path) is None
        fd = super().open_write(path)
        if is_new:
            found = os.fstat(fd)
            self._edit(path, File(b"", found.st_mode, (found.st_dev, found.st_ino)))
        node = self._node(path)
        if isinstance(node, File):
            self._open[fd] = node
            self._inodes[node.inode] = node
        return fd

    def lock(self, path: Path) -> int:
        self._step()
        fd = super().lock(path)
        self._locks.add(fd)
        if self._node(path) is None:
            found = os.fstat(fd)
            self._edit(path, File(b"", found.st_mode, (found.st_dev, found.st_ino)))
        return fd

    def close(self, fd: int) -> None:
        self._open.pop(fd, None)
        self._locks.discard(fd)
        super().close(fd)

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._step()
        super().write(fd, data, offset)
        self._open[fd].changes.append((self._tick(), offset, bytes(data)))

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._step()
        super().truncate(fd, size_bytes)
        self._open[fd].changes.append((self._tick(), None, size_bytes))

    def set_read_only(self, fd: int) -> None:
        self._step()
        super().set_read_only(fd)
        self._open[fd].changes.append((self._tick(), -1, 0o444))

    def set_writable(self, path: Path) -> None:
        self._step()
        super().set_writable(path)
        node = self._node(path)
        if isinstance(node, File):
            node.changes.append((self._tick(), -1, 0o600))

    def make_folder(self, path: Path) -> None:
        self._step()
        super().make_folder(path)
        for folder in reversed([path, *path.parents]):
            if folder.is_relative_to(self._base) and self._node(folder) is None:
                self._edit(folder, Folder())

    def link(self, source: Path, target: Path) -> None:
        self._step()
        super().link(source, target)
        self._edit(target, self._node(source))

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)
        # The one file that is not made by this disk: SQLite wrote and synced it before it got its name.
        node = self._node(source) or Database([(self._moment, target.read_bytes(), True)])
        self._edit(source, None)
        self._edit(target, node, is_same_moment=True)

    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)
        self._edit(path, None)

    def remove_folder(self, path: Path) -> None:
        self._step()
        super().remove_folder(path)
        self._edit(path, None)

    # --- what makes it durable ---

    def fsync(self, fd: int) -> None:
        self._step()
        super().fsync(fd)
        if self._is_done("fsync"):
            self._open[fd].syncs.append(self._tick())

    def fsync_folder(self, path: Path) -> None:
        self._step()
        super().fsync_folder(path)
        node = self._node(path)
        if self._is_done("fsync_folder") and isinstance(node, Folder):
            node.syncs.append(self._tick())

    def committed(self, path: Path, content: bytes, site: str, *, is_durable: bool) -> None:
        """The database at `path` is this now."""
        node = self._node(path)
        if is_durable:
            self.sites.add(site)
        if isinstance(node, Database):
            node.commits.append((self._tick(), content, is_durable and site != self._ignored))

    def _step(self) -> None:
        self._steps += 1
        if self._steps_left == 0:
            raise Stopped
        if self._steps_left is not None:
            self._steps_left -= 1

    def _is_done(self, method: str) -> bool:
        self.sync_steps.append(self._steps - 1)
        caller = sys._getframe(2)
        site = f"{Path(caller.f_code.co_filename).stem}.{caller.f_code.co_qualname}:{caller.f_lineno} {method}"
        self.sites.add(site)
        return site != self._ignored

    # --- the tree ---

    def _scan(self, path: Path) -> Folder:
        folder = Folder()
        for entry in sorted(path.iterdir()):
            node: Node
            if entry.is_dir():
                node = self._scan(entry)
            elif entry.name == "state.db":
                node = Database([(0, _database_bytes(entry), True)])
            elif entry.name.startswith("state.db-"):
                continue
            else:
                found = entry.stat()
                inode = (found.st_dev, found.st_ino)
                node = self._inodes.setdefault(inode, File(entry.read_bytes(), found.st_mode, inode))
            folder.first[entry.name] = node
        folder.live = dict(folder.first)
        return folder

    def _node(self, path: Path) -> Node | None:
        """None: there is nothing, or it lies outside."""
        node: Node | None = self._root if path.is_relative_to(self._base) else None
        for part in path.parts[len(self._base.parts) :]:
            node = node.live.get(part) if isinstance(node, Folder) else None
        return node

    def _edit(self, path: Path, node: Node | None, *, is_same_moment: bool = False) -> None:
        folder = self._node(path.parent)
        if isinstance(folder, Folder) and folder.live.get(path.name) is not node:
            folder.live = {**folder.live, path.name: node} if node else without(folder.live, path.name)
            folder.changes.append((self._moment if is_same_moment else self._tick(), path.name, node))

    def _tick(self) -> int:
        self._moment += 1
        return self._moment


class _WatchedState(State):
    """Tells the disk of each commit."""

    def __init__(self, path: Path, disk: PowerCutDisk) -> None:
        super().__init__(path)
        self._disk = disk

    @contextmanager
    def _writing(self, *, is_durable: bool = True) -> Iterator[sqlite3.Connection]:
        # The frame of the method of `State` that writes: this generator, and contextlib's __enter__, lie above it.
        site = f"state.{sys._getframe(2).f_code.co_qualname} commit"
        with super()._writing(is_durable=is_durable) as db:
            yield db
        self._disk.committed(self._path, self._db.serialize(), site, is_durable=is_durable)


def _database_bytes(path: Path) -> bytes:
    """With what is still in its log."""
    db = sqlite3.connect(path)
    try:
        return db.serialize()
    finally:
        db.close()
