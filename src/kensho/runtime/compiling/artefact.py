"""Write the files of a compiled graph: weights.bin through a map, graph.onnx, header.json; hash and fsync them.

A hash vouches for what is there, not for what should be: memory or a writer that went wrong before the hashing would be
sealed for ever. So what is in the file is held against what was computed, by the sums of each matrix's columns, which
the quantiser takes from its own block of memory, and by the digests of all other constants.
"""

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import CompileFailed, KenshoError, NotEnoughSpace, StorageError
from kensho.base.ids import Digest, digest_of
from kensho.runtime.cache.graph_hashing import hash_section
from kensho.runtime.cache.header import (
    BLOCK_BYTES,
    GRAPH_FILE,
    GRAPH_SECTION,
    MIXED_SECTION,
    TABLE_SECTION,
    WEIGHTS_FILE,
    Section,
)
from kensho.runtime.graph.graph_int8 import Constant
from kensho.runtime.graph.weights_layout import Layout, Matrix, Place


class WeightsFile:
    """weights.bin of one layout, its space reserved, mapped for writing. Use with `with`.

    What is `sealed` is summed and hashed by a thread of its own while the rest is written.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._layout = layout
        self._file = (folder / WEIGHTS_FILE).open("x+b")
        # All of it now: a full disk must be an error here and not a SIGBUS in the middle of a mapped write.
        os.posix_fallocate(self._file.fileno(), 0, layout.size_bytes)
        self._map = mmap.mmap(self._file.fileno(), layout.size_bytes)
        self._hasher = ThreadPoolExecutor(1, "hash")
        self._sealed: dict[str, Future[Section]] = {}
        self._written: dict[str, Digest] = {}

    def __enter__(self) -> "WeightsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._hasher.shutdown(cancel_futures=True)
        # The map goes with the last array over it: closing it here would raise while an error's traceback holds one.
        self._file.close()

    def matrix(self, matrix: Matrix) -> NDArray[np.int8]:
        """The (columns, rows) array to be filled. Drop it before the file is closed."""
        place = self._layout.places[matrix.name]
        flat = np.frombuffer(self._map, np.int8, place.size_bytes, place.offset)
        return flat.reshape(matrix.columns, matrix.rows)

    def seal(self, matrix: Matrix, sums: NDArray[np.int32]) -> None:
        """The matrix is complete, with these sums of its columns: nothing of its place is written from now on."""
        self._sealed[matrix.name] = self._hasher.submit(self._check_and_hash, matrix, sums)

    def write(self, constants: dict[str, Constant]) -> None:
        """Those of the constants that have a place here."""
        for name, array in constants.items():
            if place := self._layout.places.get(name):
                data = array.tobytes()
                self._map[place.offset : place.offset + place.size_bytes] = data
                self._written[name] = digest_of(data)

    def sections(self, on_block: Callable[[int], None]) -> Iterator[Section]:
        """The hashed sections, padding included. `on_block(count)` after each section.

        Raises CompileFailed when what is in the file is not what was written to it.
        """
        for place in self._layout.places.values():
            sealed = self._sealed.get(place.name)
            if sealed:
                section = sealed.result()
            else:
                with memoryview(self._map) as data, data[place.offset : place.offset + place.size_bytes] as part:
                    if digest_of(part) != self._written.get(place.name):
                        raise _not_as_written(place.name)
                section = self._hash(place)
            on_block(len(section.blocks))
            yield section

    def _check_and_hash(self, matrix: Matrix, sums: NDArray[np.int32]) -> Section:
        if not np.array_equal(self.matrix(matrix).sum(axis=0, dtype=np.int32), sums):
            raise _not_as_written(matrix.name)
        return self._hash(self._layout.places[matrix.name])

    def _hash(self, place: Place) -> Section:
        with memoryview(self._map) as data, data[place.offset : place.end] as part:
            role = TABLE_SECTION if place.name in self._layout.tables else "weights"
            return hash_section(place.name, WEIGHTS_FILE, place.offset, part, role)

    def flush(self) -> None:
        self._map.flush()
        os.fsync(self._file.fileno())


def _not_as_written(name: str) -> CompileFailed:
    return CompileFailed(
        f"what is in weights.bin for {name} is not what was computed",
        advice="look at this machine's memory and disk; it is tried again",
        stage="finalizing",
    )


def count_blocks(layout: Layout) -> int:
    """How many SHA-256 the sections of weights.bin will have."""
    return sum(-(-(place.end - place.offset) // BLOCK_BYTES) for place in layout.places.values())


def graph_sections(graph: bytes, mixed: bytes) -> tuple[Section, Section]:
    """Those of graph.onnx, which is the two one after the other."""
    return (
        hash_section("graph", GRAPH_FILE, 0, memoryview(graph), GRAPH_SECTION),
        hash_section("mixed", GRAPH_FILE, len(graph), memoryview(mixed), MIXED_SECTION),
    )


def write_file(folder: Path, name: str, data: bytes) -> None:
    """Write and fsync, replacing what is there."""
    with (folder / name).open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Make the names in the folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(folder: Path, needed_bytes: int) -> Iterator[None]:
    """OSErrors of the block as StorageError, a full disk as NotEnoughSpace."""
    try:
        yield
    except KenshoError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotEnoughSpace(
                f"not enough space to compile in {folder}: need {needed_bytes // 2**20 + 1} MiB",
                advice="free space; the model still runs uncompiled",
                needed_bytes=needed_bytes,
            ) from error
        raise StorageError(
            f"cannot write the compiled graph in {folder}: {error.strerror}", advice="check the folder and its disk"
        ) from error
