"""Arrays in memory that two processes share: one copy in, none out.

    headers = segment.put({"ids": ids})              # in one process; the headers go through the socket
    arrays = other.view(headers)                     # in the other: views of the same memory

One segment belongs to one host and its parent, who take turns: what `put` wrote stays until the next `put` of either.
It begins empty and grows on demand, up to MAX_SEGMENT_BYTES. The other side may be broken or hostile: headers are
checked (type, alignment, bounds, real size of the segment) before anything is read, and a seal keeps the segment from
ever shrinking, which would turn a read into a bus error. What it cannot prevent is that the other side writes on: a
view is for reading soon, values that must not change are copied.
"""

import fcntl
import mmap
import os
from collections.abc import Mapping
from math import prod

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import ConfigError, EngineError
from kensho.runtime.hosts.frames import MAX_DIMENSIONS, MAX_TENSORS, TensorHeader

MAX_SEGMENT_BYTES = 64 << 20
"""Logits of 262k entries are 1 MB; this is 16 of them, or a 4096 x 4096 matrix of float32."""
ALIGNMENT_BYTES = 64
"""A cache line, and what the widest vector instructions want."""
_FIRST_BYTES = 64 << 10
_MAX_NAME = 64


class TensorSegment:
    """One side of the memory. Not thread-safe. Owns the descriptor, an anonymous file (memfd) made with sealing."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor
        self._map: mmap.mmap | None = None
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)

    def put(
        self, arrays: Mapping[str, NDArray[np.generic]], *, after: tuple[TensorHeader, ...] = ()
    ) -> tuple[TensorHeader, ...]:
        """Copy the arrays in, once each, behind those of `after`, and say where they are. Raises ConfigError (a type
        or number that does not go), EngineError (no memory, closed). Costs a copy: 0.1 ms for 4 MB."""
        if len(arrays) > MAX_TENSORS:
            raise ConfigError(f"{len(arrays)} tensors in one request, {MAX_TENSORS} at most", advice="ask more often")
        at = max((_end(header) for header in after), default=0)
        headers = []
        for name, array in arrays.items():
            header = TensorHeader(name, array.dtype.name, array.shape, _aligned(at))  # type: ignore[arg-type]
            if array.dtype not in _DTYPES.values() or array.ndim > MAX_DIMENSIONS or len(name) > _MAX_NAME:
                raise ConfigError(f"tensor {name[:_MAX_NAME]!r} of {array.dtype} cannot cross", advice="convert it")
            headers.append(header)
            at = _end(header)
        if at > MAX_SEGMENT_BYTES:
            raise ConfigError(f"{at} bytes of tensors, {MAX_SEGMENT_BYTES} at most", advice="ask in smaller parts")
        memory = self._memory(at, may_grow=True)
        for header, array in zip(headers, arrays.values(), strict=True):
            np.copyto(_array(memory, header), array, casting="no")
        return tuple(headers)

    def view(self, headers: tuple[TensorHeader, ...]) -> dict[str, NDArray[np.generic]]:
        """The arrays that the other side put there, read-only, by name. Raises EngineError for headers that lie."""
        for header in headers:
            if header.offset % ALIGNMENT_BYTES or _end(header) > MAX_SEGMENT_BYTES or len(header.name) > _MAX_NAME:
                raise _refused(f"{_size_bytes(header)} bytes at {header.offset} are out of bounds")
        memory = self._memory(max((_end(header) for header in headers), default=0), may_grow=False)
        try:
            arrays = {header.name: _array(memory, header) for header in headers}
        except ValueError as error:  # such as 2^32 x 2^32 x 0 elements
            raise _refused(str(error)) from error
        for array in arrays.values():
            array.flags.writeable = False
        return arrays

    def close(self) -> None:
        """Give the memory back; views that are still held keep their part. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = self._map = None

    def _memory(self, wanted_bytes: int, *, may_grow: bool) -> mmap.mmap:
        """A map of at least so many bytes."""
        if self._descriptor is None:
            raise EngineError("the memory for tensors is closed", advice="start the engine")
        if self._map is None or len(self._map) < wanted_bytes:
            size_bytes = os.fstat(self._descriptor).st_size
            try:
                if may_grow and size_bytes < max(wanted_bytes, _FIRST_BYTES):
                    size_bytes = min(MAX_SEGMENT_BYTES, max(_FIRST_BYTES, 1 << (wanted_bytes - 1).bit_length()))
                    os.truncate(self._descriptor, size_bytes)
                if size_bytes < max(wanted_bytes, 1):
                    raise _refused(f"{wanted_bytes} bytes are claimed, the memory has {size_bytes}")
                self._map = mmap.mmap(self._descriptor, min(size_bytes, MAX_SEGMENT_BYTES))
            except OSError as error:
                raise EngineError(f"no memory for tensors: {error.strerror}", advice="free memory") from error
        return self._map


_DTYPES: Mapping[str, np.dtype[np.generic]] = {
    name: np.dtype(name) for name in ("float16", "float32", "float64", "int8", "int32", "int64", "uint8")
}


def _refused(why: str) -> EngineError:
    return EngineError(f"the other side's description of its tensors is wrong: {why}", advice="restart the engine")


def _array(memory: mmap.mmap, header: TensorHeader) -> NDArray[np.generic]:
    return np.ndarray(header.shape, _DTYPES[header.dtype], buffer=memory, offset=header.offset)


def _size_bytes(header: TensorHeader) -> int:
    # Python's integers: no product of sizes wraps around.
    return prod(header.shape) * _DTYPES[header.dtype].itemsize


def _end(header: TensorHeader) -> int:
    return header.offset + _size_bytes(header)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
