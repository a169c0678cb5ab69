"""A disk that fails, or dies, at a chosen operation: the store is proven by doing so at every one of them.

    disk = FaultyDisk(at=17, fault="stop")     # the 17th changing operation is not done, nor is anything after it
    disk = FaultyDisk(at=17, fault=errno.ENOSPC)   # only the 17th fails
    disk = FaultyDisk(at=17, fault=errno.ENOSPC, is_lasting=True)   # and every write after it

`stop` stands for SIGKILL: the operation raises `Stopped`, which is no Exception, and so does every later one, so that
no clean-up code can do what a dead process could not. `release` then closes what was left open, as the kernel does.
Operations that change nothing are counted apart (`reads`) and fail only if `is_reading` says so.
"""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from kensho.delivery.disk import RealDisk

T = TypeVar("T")


class Stopped(BaseException):
    """The process is dead."""


class FaultyDisk:
    """Satisfies `delivery.disk.Disk`. `operations` has the name of each changing operation so far."""

    def __init__(
        self,
        *,
        at: int | None = None,
        fault: int | Literal["stop"] = "stop",
        is_lasting: bool = False,
        is_reading: bool = False,
        has_links: bool = True,
        free_bytes: int | None = None,
    ) -> None:
        self.operations: list[str] = []
        self.reads = 0
        self._at, self._fault, self._is_lasting, self._is_reading = at, fault, is_lasting, is_reading
        self._has_links, self._free_bytes = has_links, free_bytes
        self._disk = RealDisk()
        self._is_stopped = False
        self._lock = threading.Lock()
        self._open: set[int] = set()

    def release(self) -> None:
        """What the kernel does for a dead process: closes its descriptors, which releases its locks."""
        for fd in self._open:
            os.close(fd)
        self._open.clear()

    @property
    def is_reached(self) -> bool:
        """The fault has happened."""
        count = self.reads if self._is_reading else len(self.operations)
        return self._at is not None and count >= self._at

    # --- changing ---

    def open_write(self, path: Path) -> int:
        return self._opened(self._change("open_write", lambda: self._disk.open_write(path)))

    def lock(self, path: Path) -> int:
        return self._opened(self._change("lock", lambda: self._disk.lock(path)))

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        self._change("write", lambda: self._disk.write(fd, data, offset))

    def truncate(self, fd: int, size_bytes: int) -> None:
        self._change("truncate", lambda: self._disk.truncate(fd, size_bytes))

    def fsync(self, fd: int) -> None:
        self._change("fsync", lambda: None)  # the process dies, not the machine: nothing to flush, much to wait for

    def fsync_folder(self, path: Path) -> None:
        self._change("fsync_folder", path.stat)

    def set_read_only(self, fd: int) -> None:
        self._change("set_read_only", lambda: self._disk.set_read_only(fd))

    def set_writable(self, path: Path) -> None:
        self._change("set_writable", lambda: self._disk.set_writable(path))

    def make_folder(self, path: Path) -> None:
        self._change("make_folder", lambda: self._disk.make_folder(path))

    def link(self, source: Path, target: Path) -> None:
        if not self._has_links:
            raise PermissionError(1, "hard links are not allowed here", str(target))
        self._change("link", lambda: self._disk.link(source, target))

    def rename(self, source: Path, target: Path) -> None:
        self._change("rename", lambda: self._disk.rename(source, target))

    def unlink(self, path: Path) -> None:
        self._change("unlink", lambda: self._disk.unlink(path))

    def remove_folder(self, path: Path) -> None:
        self._change("remove_folder", lambda: self._disk.remove_folder(path))

    # --- reading ---

    def open_read(self, path: Path) -> int:
        return self._opened(self._read(lambda: self._disk.open_read(path)))

    def fstat(self, fd: int) -> os.stat_result:
        return self._read(lambda: self._disk.fstat(fd))

    def lstat(self, path: Path) -> os.stat_result | None:
        return self._read(lambda: self._disk.lstat(path))

    def list_folder(self, path: Path) -> list[str]:
        return self._read(lambda: self._disk.list_folder(path))

    def free_bytes(self, path: Path) -> int:
        return self._read(lambda: self._disk.free_bytes(path) if self._free_bytes is None else self._free_bytes)

    def read_into(self, fd: int, buffer: memoryview, offset: int) -> int:
        return self._read(lambda: self._disk.read_into(fd, buffer, offset))

    def has_data(self, fd: int, offset: int, length: int) -> bool:
        return self._read(lambda: self._disk.has_data(fd, offset, length))

    def close(self, fd: int) -> None:
        with self._lock:
            if self._is_stopped:
                return  # `release` does it
            self._open.discard(fd)
        self._disk.close(fd)

    # --- the fault ---

    def _opened(self, fd: int) -> int:
        with self._lock:
            self._open.add(fd)
        return fd

    def _change(self, name: str, act: Callable[[], T]) -> T:
        with self._lock:
            self._alive()
            self.operations.append(name)
            if not self._is_reading:
                self._fail(len(self.operations))
        return act()

    def _read(self, act: Callable[[], T]) -> T:
        with self._lock:
            self._alive()
            self.reads += 1
            if self._is_reading:
                self._fail(self.reads)
        return act()

    def _alive(self) -> None:
        if self._is_stopped:
            raise Stopped

    def _fail(self, count: int) -> None:
        if self._at is None or not (count == self._at or (self._is_lasting and count > self._at)):
            return
        if self._fault == "stop":
            self._is_stopped = True
            raise Stopped
        raise OSError(self._fault, os.strerror(self._fault))
