"""The few disk operations that the store is made of, so that a test can fail or stop each of them.

`Disk` is the edge; `RealDisk` is the machine's. Methods raise OSError as the kernel gives it; `storage_errors` turns it
into StorageError once, at the border of the store, with what happened, to what, and what to do. Every file is opened
with O_NOFOLLOW and refused unless it is a regular file: a planted link, FIFO or device must not be read or written
in its place (list item 15 of the delivery design).

Reading never fails a test by itself, but a read can be made to return EIO too: that is why it is here.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from kensho.base.errors import NotEnoughSpace, StorageError

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES})
"""What file systems answer when they cannot (or will not) make a hard link: FAT, some network and FUSE mounts."""
MAX_WRITE_BYTES = 1 << 20
"""Of one system call. Measured on ext4 (Linux 6.18): writes of 2 to 4 MiB sometimes take ten times as long, because the
page cache then looks for large pages; writes of 1 MiB never did, and cost nothing more."""


class Disk(Protocol):
    """Paths are absolute. A descriptor belongs to who opened it, and is closed with `close`."""

    def open_read(self, path: Path) -> int: ...
    def open_write(self, path: Path) -> int:
        """Read and write, created 0600 if absent."""
        ...

    def close(self, fd: int) -> None: ...
    def lock(self, path: Path) -> int:
        """Exclusive flock of the file (created if absent), not waiting: BlockingIOError when another holds it.
        The kernel releases it with the descriptor, so it is never stale."""
        ...

    def fstat(self, fd: int) -> os.stat_result: ...
    def lstat(self, path: Path) -> os.stat_result | None:
        """None if there is nothing of that name."""
        ...

    def list_folder(self, path: Path) -> list[str]: ...
    def free_bytes(self, path: Path) -> int: ...
    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        """Fills the buffer from `offset` on; returns the count, less than its length only at the end of the file."""
        ...

    def has_data(self, fd: int, offset: int, length: int) -> bool:
        """False if the range is surely a hole (never written) or past the end; True when not known."""
        ...

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Writes all of it."""
        ...

    def truncate(self, fd: int, size_bytes: int) -> None: ...
    def fsync(self, fd: int) -> None: ...
    def fsync_folder(self, path: Path) -> None: ...
    def set_read_only(self, fd: int) -> None: ...
    def set_writable(self, path: Path) -> None:
        """For the owner alone."""
        ...

    def make_folder(self, path: Path) -> None:
        """With its parents; no error if it is there."""
        ...

    def link(self, source: Path, target: Path) -> None: ...
    def rename(self, source: Path, target: Path) -> None:
        """Replaces the target atomically."""
        ...

    def unlink(self, path: Path) -> None:
        """No error if there is nothing of that name."""
        ...

    def remove_folder(self, path: Path) -> None:
        """An empty one."""
        ...


class RealDisk:
    """The kernel's."""

    def open_read(self, path: Path) -> int:
        return _open_regular(path, os.O_RDONLY)

    def open_write(self, path: Path) -> int:
        return _open_regular(path, os.O_RDWR | os.O_CREAT)

    def close(self, fd: int) -> None:
        os.close(fd)

    def lock(self, path: Path) -> int:
        fd = _open_regular(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def lstat(self, path: Path) -> os.stat_result | None:
        try:
            return path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def list_folder(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))  # noqa: PTH208 - names, not paths

    def free_bytes(self, path: Path) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        done = 0
        while done < len(buffer):
            count = os.preadv(fd, [buffer[done:]], offset + done)
            if not count:
                break
            done += count
        return done

    def has_data(self, fd: int, offset: int, length: int) -> bool:
        try:
            return os.lseek(fd, offset, os.SEEK_DATA) < offset + length
        except OSError as error:
            return error.errno != errno.ENXIO  # ENXIO: no data from here on; anything else: not supported

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(fd, view[:MAX_WRITE_BYTES], offset)
            view, offset = view[count:], offset + count

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fsync_folder(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def set_read_only(self, fd: int) -> None:
        os.fchmod(fd, 0o444)

    def set_writable(self, path: Path) -> None:
        fd = self.open_read(path)
        try:
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)

    def link(self, source: Path, target: Path) -> None:
        os.link(source, target, follow_symlinks=False)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        path.rmdir()


@contextmanager
def storage_errors(what: str, folder: Path) -> Iterator[None]:
    """Translates OSError raised inside into StorageError or NotEnoughSpace. `what` completes 'cannot ...'."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what, folder) from error


def storage_error(error: OSError, what: str, folder: Path) -> StorageError:
    """The error for people: what could not be done, why, and what to do next."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    message = f"cannot {what} in {folder}: {reason.lower()}"
    if error.errno in NO_SPACE:
        return NotEnoughSpace(
            message, advice="free space (or raise the quota) and run it again: what was fetched is kept"
        )
    advice = {
        errno.EROFS: "the file system is read-only: mount it writable or choose another store",
        errno.EACCES: "give this user the right to write there, or choose another store",
        errno.EPERM: "give this user the right to write there, or choose another store",
        errno.ENOENT: "is the disk mounted? else make the store with `kensho init`",
        errno.ELOOP: "a symbolic link stands where a file belongs: remove it and run `kensho repair`",
        errno.EIO: "the disk reports errors: check it, then run `kensho repair`",
    }.get(error.errno or 0, "check the disk, then run it again")
    return StorageError(message, advice=advice, errno=error.errno)


def _open_regular(path: Path, flags: int) -> int:
    # O_NONBLOCK: opening a planted FIFO must not hang; it has no effect on a regular file.
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, "not a regular file", str(path))
    return fd
