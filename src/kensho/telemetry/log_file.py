"""The structured log on disk: JSON lines, one `write` each, nothing lost when the process is killed.

Rules: (1) a line is one `os.write` to a file opened with O_APPEND, so processes and threads share the file without a
lock and a kill loses no finished line; (2) the file is rotated by size, under a kernel lock that is never stale;
(3) the whole folder stays below `max_bytes * keep`: older files are compressed, then removed; (4) a disk that refuses
never hurts the caller: the line is counted as dropped.
"""

import contextlib
import fcntl
import os
import threading
from pathlib import Path

LOG_NAME = "kensho.jsonl"


class LogFile:
    """Append-only JSON lines in `folder`/kensho.jsonl; rotated files are kensho-<n>.jsonl[.gz], higher n is newer."""

    def __init__(self, folder: Path, *, max_bytes: int = 10 << 20, keep: int = 5) -> None:
        """`max_bytes` is the size at which the file is rotated; `keep` how many rotated files stay."""
        self.path = folder / LOG_NAME
        self.dropped = 0
        self._folder = folder
        self._max_bytes = max_bytes
        self._keep = keep
        self._fd = -1
        self._lock = threading.Lock()

    def write(self, line: bytes) -> None:
        """Append one line (newline included). Never raises; a line that cannot be written is counted in `dropped`."""
        try:
            if self._fd < 0:
                with self._lock:
                    if self._fd < 0:
                        self._fd = self._open()
            os.write(self._fd, line)
            if os.fstat(self._fd).st_size >= self._max_bytes:
                self._rotate()
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """End it; no thread may still be writing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        while True:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            fcntl.flock(fd, fcntl.LOCK_SH)  # "somebody writes here": such a file is not compressed or removed
            if _is_same_file(fd, self.path):
                return fd
            os.close(fd)  # rotated away between open and lock

    def _rotate(self) -> None:
        """Rename the full file away; whoever holds the lock does it, the others just open the new one."""
        with (self._folder / ".rotate.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if _is_same_file(self._fd, self.path) and os.fstat(self._fd).st_size >= self._max_bytes:
                    rotated = self._rotated()
                    self.path.rename(self._folder / f"kensho-{_number(rotated[-1]) + 1 if rotated else 1}.jsonl")
                    self._tidy()
            # dup2, not close and open: the number stays ours, so a thread in os.write never hits a stranger's file
            fresh = self._open()
            os.dup2(fresh, self._fd, inheritable=False)
            os.close(fresh)

    def _tidy(self) -> None:
        """Compress the rotated files and remove the oldest; a file that somebody still writes to waits its turn."""
        import gzip
        import shutil

        rotated = self._rotated()
        for old in rotated[: -self._keep]:
            old.unlink(missing_ok=True)
        for old in rotated[-self._keep :]:
            if old.suffix == ".gz":
                continue
            packed = old.with_name(old.name + ".gz")
            with old.open("rb") as source, contextlib.suppress(BlockingIOError):
                fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with gzip.open(packed, "wb", compresslevel=1) as target:
                    shutil.copyfileobj(source, target)
                old.unlink()

    def _rotated(self) -> list[Path]:
        return sorted(self._folder.glob("kensho-*.jsonl*"), key=_number)


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        at_path, at_fd = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (at_path.st_dev, at_path.st_ino) == (at_fd.st_dev, at_fd.st_ino)


def _number(path: Path) -> int:
    digits = path.name.removeprefix("kensho-").split(".")[0]
    return int(digits) if digits.isdigit() else 0
