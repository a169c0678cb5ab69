"""Small files that are old or new after a power cut, never in between: write, fsync, rename, fsync the folder.

Used for signed documents, in a publisher's repository and in a client's trusted folder. They are replaced whole and
never edited, so they are left read-only and readable for everybody (a web server has another user).
"""

from contextlib import suppress
from pathlib import Path

from kensho.base.errors import TrustError
from kensho.delivery.disk import Disk
from kensho.delivery.planted import remove_tree


def write_document(disk: Disk, path: Path, data: bytes) -> None:
    """`path` has exactly `data` afterwards, also after a power cut; until then it has what it had. OSError if not.

    One writer at a time per name: the caller holds the folder's lock. Two fsyncs, some ms on a real disk.
    """
    partial = path.with_name(f".{path.name}.partial")
    remove_tree(disk, partial)  # a killed writer's leftover may be read-only
    fd = disk.open_write(partial)
    try:
        disk.write(fd, data, 0)
        disk.set_read_only(fd)
        disk.fsync(fd)
    finally:
        disk.close(fd)
    disk.rename(partial, path)
    disk.fsync_folder(path.parent)


def make_folders(disk: Disk, path: Path) -> None:
    """The folder and its missing parents exist afterwards, also after a power cut. OSError if not."""
    missing = []
    while disk.lstat(path) is None and path != path.parent:
        missing.append(path)
        path = path.parent
    with suppress(PermissionError):  # who may not read the parent did not make the folder either
        disk.fsync_folder(path.parent)  # whoever made it may have been killed before this
    for folder in reversed(missing):
        disk.make_folder(folder)
        disk.fsync_folder(folder.parent)


def read_document(disk: Disk, path: Path, *, max_bytes: int) -> bytes | None:
    """The bytes of the file, None if there is none. OSError if it cannot be read, TrustError if it is too long."""
    if disk.lstat(path) is None:
        return None
    fd = disk.open_read(path)
    try:
        size = disk.fstat(fd).st_size
        if size > max_bytes:
            raise TrustError(
                f"{path} has {size} bytes; at most {max_bytes} can be signed ones", advice="restore it from a good copy"
            )
        buffer = bytearray(size)
        return bytes(buffer[: disk.read_into(fd, memoryview(buffer), 0)])
    finally:
        disk.close(fd)
