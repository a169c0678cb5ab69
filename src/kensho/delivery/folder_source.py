"""A repository in a folder: a USB stick, a network share, file://. Same protocol, same trust rules as the web."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from kensho.base.errors import NotFoundAtSource, TransportError

PIECE_BYTES = 1 << 20


class FolderSource:
    """Satisfies `Source`. Only regular files inside the folder are read: no `..`, no link that leads out of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bytes = 0
        self._requests = 0

    @property
    def name(self) -> str:
        return str(self._folder)

    @property
    def bytes_fetched(self) -> int:
        return self._bytes

    @property
    def requests(self) -> int:
        return self._requests

    def read(self, path: str, *, max_bytes: int) -> bytes:
        fd = self._open(path)
        try:
            data = self._pread(fd, path, max_bytes + 1, 0)
            while 0 < len(data) <= max_bytes and (more := self._pread(fd, path, max_bytes + 1 - len(data), len(data))):
                data += more
        finally:
            os.close(fd)
        if len(data) > max_bytes:
            raise TransportError(
                f"{path} of {self.name} has more than {max_bytes} bytes", advice="its publisher must look"
            )
        return data

    def read_range(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        fd = self._open(path)
        try:
            end = offset + length
            while offset < end:
                piece = self._pread(fd, path, min(PIECE_BYTES, end - offset), offset)
                if not piece:
                    raise TransportError(
                        f"{path} of {self.name} ends {end - offset} bytes too early", advice="copy the repository again"
                    )
                offset += len(piece)
                yield piece
        finally:
            os.close(fd)

    def close(self) -> None:
        """Nothing is kept open between reads."""

    def _open(self, path: str) -> int:
        self._requests += 1
        try:
            root = self._folder.resolve(strict=True)
        except OSError as error:
            raise TransportError(f"no folder {self._folder}", advice="is the stick or share mounted?") from error
        try:
            target = (root / path).resolve(strict=True)
            if not target.is_relative_to(root):
                raise NotFoundAtSource(f"{path!r} leads out of {self.name}", advice="check the repository")
            fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError) as error:
            raise NotFoundAtSource(f"no {path!r} in {self.name}", advice="check the repository") from error
        except OSError as error:
            raise self._cannot(path, error) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise NotFoundAtSource(f"{path!r} in {self.name} is not a file", advice="check the repository")
        return fd

    def _pread(self, fd: int, path: str, length: int, offset: int) -> bytes:
        try:
            data = os.pread(fd, length, offset)
        except OSError as error:
            raise self._cannot(path, error) from error
        self._bytes += len(data)
        return data

    def _cannot(self, path: str, error: OSError) -> TransportError:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        return TransportError(f"cannot read {path} in {self.name}: {reason}", advice="check the disk or share")
