"""Hash files in blocks of 1 MiB through a buffer that is used again: about 1.7 GB/s on one thread, 3 GB/s on two.

Measured (design of delivery, section 3): `hashlib.file_digest` reaches 0.74 GB/s there, sha256sum 0.49.
"""

import hashlib
import threading
from collections.abc import Sequence

from kensho.base.ids import Digest
from kensho.delivery.disk import Disk
from kensho.delivery.parallel import for_each

BLOCK_BYTES = 1 << 20
THREADS = 2


def hash_spans(disk: Disk, fd: int, spans: Sequence[tuple[int, int]], *, threads: int = THREADS) -> list[Digest]:
    """SHA-256 of each (offset, length); of what is there if the file ends too early. OSError if it is unreadable."""
    digests = [Digest("")] * len(spans)
    local = threading.local()

    def hash_one(index: int) -> None:
        if not hasattr(local, "buffer"):
            local.buffer = memoryview(bytearray(BLOCK_BYTES))
        digests[index] = _hash(disk, fd, *spans[index], local.buffer)

    for_each(range(len(spans)), hash_one, threads=max(1, min(threads, len(spans))))
    return digests


def hash_file(disk: Disk, fd: int, size_bytes: int) -> Digest:
    """SHA-256 of the first `size_bytes`, on the calling thread. OSError if it cannot be read."""
    return _hash(disk, fd, 0, size_bytes, memoryview(bytearray(BLOCK_BYTES)))


class BackgroundHash:
    """`hash_file` on a thread of its own, while the caller waits for the disk. Starts at once."""

    def __init__(self, disk: Disk, fd: int, size_bytes: int) -> None:
        self._digest = Digest("")
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(disk, fd, size_bytes), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Only afterwards may the descriptor be closed."""
        self._thread.join()

    def result(self) -> Digest:
        """Waits. OSError if the file cannot be read."""
        self.wait()
        if self._error:
            raise self._error
        return self._digest

    def _run(self, disk: Disk, fd: int, size_bytes: int) -> None:
        try:
            self._digest = hash_file(disk, fd, size_bytes)
        except BaseException as error:
            self._error = error


def _hash(disk: Disk, fd: int, offset: int, length: int, buffer: memoryview) -> Digest:
    found = hashlib.sha256()
    end = offset + length
    while offset < end:
        block = buffer[: min(len(buffer), end - offset)]
        count = disk.read_into(fd, block, offset)
        if not count:
            break
        found.update(block[:count])
        offset += count
    return Digest(found.hexdigest())
