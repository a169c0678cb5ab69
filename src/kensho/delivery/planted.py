"""What stands where a file or a folder of the store belongs and is none: planted links, FIFOs, devices, folders.

It is removed, and never followed: what a link leads to is not ours (list item 15 of the delivery design). A hard link
counts only where a file is about to be written in place. Everything may raise OSError.
"""

import errno
import os
import stat
from pathlib import Path

from kensho.delivery.disk import Disk


def is_regular(disk: Disk, path: Path) -> bool:
    found = disk.lstat(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(disk: Disk, path: Path) -> bool:
    """A real one: a link to a folder is none."""
    found = disk.lstat(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def make_way_for_file(disk: Disk, path: Path) -> None:
    """Afterwards there is a regular file at `path`, or nothing."""
    if not is_regular(disk, path):
        remove_tree(disk, path)


def make_way_for_folder(disk: Disk, path: Path) -> None:
    """Afterwards there is a real folder at `path`, or nothing."""
    if not is_folder(disk, path):
        remove_tree(disk, path)


def remove_inside(disk: Disk, root: Path, path: Path) -> int:
    """Removes `path` and all in it; returns the bytes freed. A planted link on the way from `root` to it is removed
    instead. ELOOP if that is one of the root's own folders: somebody moved it, and must look."""
    parents = [folder for folder in reversed(path.parents) if root in folder.parents]
    for folder in parents:
        if not is_folder(disk, folder):
            if folder.parent == root and disk.lstat(folder) is not None:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
            remove_tree(disk, folder)
            return 0
    return remove_tree(disk, path)


def remove_tree(disk: Disk, path: Path) -> int:
    """Removes a file or folder and all in it, if it is there; returns the bytes freed."""
    found = disk.lstat(path)
    if found is None:
        return 0
    if not stat.S_ISDIR(found.st_mode):
        disk.unlink(path)
        return found.st_blocks * 512 if found.st_nlink == 1 else 0
    freed = sum(remove_tree(disk, path / name) for name in disk.list_folder(path))
    disk.remove_folder(path)
    return freed
