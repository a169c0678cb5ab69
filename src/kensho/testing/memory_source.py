"""A repository's files in memory, behind the `Source` protocol, with faults.

source = MemorySource({"packs/...": b"..."})
source.faults["packs/*"] = Fault("corrupt")    # one bit of every answer is wrong
source.is_offline = True                       # nothing can be reached
"""

import threading
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from kensho.base.errors import NotFoundAtSource, TransportError
from kensho.base.structs import Struct

PIECE_BYTES = 64 << 10


class Fault(Struct):
    """What happens to reads of matching paths: `corrupt` flips the lowest bit of the first byte of each answer,
    `truncate` breaks off in its middle, `missing` is 404, `offline` does not answer. `times` None = always."""

    kind: Literal["corrupt", "truncate", "missing", "offline"]
    times: int | None = None


class MemorySource:
    """Satisfies `Source`. `files` may be changed between reads; `ranges` has each range that was asked for."""

    def __init__(self, files: Mapping[str, bytes], *, name: str = "memory") -> None:
        self.name = name
        self.files = dict(files)
        self.faults: dict[str, Fault] = {}
        self.is_offline = False
        self.bytes_fetched = 0
        self.requests = 0
        self.ranges: list[tuple[str, int, int]] = []
        self._lock = threading.Lock()

    @classmethod
    def of_folder(cls, folder: Path, *, name: str = "memory") -> "MemorySource":
        """All files of a published repository, as they are now."""
        return cls(read_folder(folder), name=name)

    def read(self, path: str, *, max_bytes: int) -> bytes:
        fault = self._ask(path)
        data = self.files[path]
        if len(data) > max_bytes:
            raise TransportError(f"{path} has more than {max_bytes} bytes", is_final=True)
        return b"".join(self._answer(path, data, fault))

    def read_range(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        fault = self._ask(path)
        with self._lock:
            self.ranges.append((path, offset, length))
        data = self.files[path][offset : offset + length]
        yield from self._answer(path, data, fault)
        if len(data) < length:
            raise TransportError(f"{path} ends early")

    def close(self) -> None:
        """Nothing is open."""

    def _ask(self, path: str) -> Fault | None:
        with self._lock:
            self.requests += 1
            fault = self._fault(path)
        if self.is_offline or (fault and fault.kind == "offline"):
            raise TransportError(f"cannot reach {self.name}")
        if path not in self.files or (fault and fault.kind == "missing"):
            raise NotFoundAtSource(f"{self.name} has no {path}")
        return fault

    def _answer(self, path: str, data: bytes, fault: Fault | None) -> Iterator[bytes]:
        if fault and fault.kind == "corrupt" and data:
            data = bytes([data[0] ^ 1]) + data[1:]
        if fault and fault.kind == "truncate":
            data = data[: len(data) // 2]
        for start in range(0, len(data), PIECE_BYTES):
            piece = data[start : start + PIECE_BYTES]
            with self._lock:
                self.bytes_fetched += len(piece)
            yield piece
        if fault and fault.kind == "truncate":
            raise TransportError(f"{self.name} cut {path} off")

    def _fault(self, path: str) -> Fault | None:
        for pattern, fault in list(self.faults.items()):
            if fnmatchcase(path, pattern):
                if fault.times == 1:
                    del self.faults[pattern]
                elif fault.times is not None:
                    self.faults[pattern] = Fault(fault.kind, fault.times - 1)
                return fault
        return None


def read_folder(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file in the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
