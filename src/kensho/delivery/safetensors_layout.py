"""Where the tensors of a safetensors file begin and end, for a publisher that cuts at their borders. Pure.

Format: u64 little-endian length N of the header; N bytes of JSON that gives each tensor's `data_offsets` [begin, end)
relative to the end of the header; then the data, which the tensors cover without gap or overlap. A file that is not
exactly so is a ModelError: it is refused before anything of it is published. Only publishers read this table; a client
never parses it before the digest of the file is verified.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from kensho.base.errors import ModelError

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> that many bytes of the file, fewer only at its end."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""


@dataclass(frozen=True, slots=True)
class TensorSpan:
    name: str
    offset: int
    """From the beginning of the file."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsLayout:
    header_bytes: int
    """The eight bytes of the length included: the first tensor begins here."""
    tensors: tuple[TensorSpan, ...]
    """In the order of their data; empty tensors left out."""


def read_layout(path: str, size_bytes: int, read: ReadAt) -> SafetensorsLayout:
    """The layout of the file. ModelError in one sentence if it is truncated or otherwise odd.

    Reads the header only (two calls of `read`), at most MAX_HEADER_BYTES.
    """
    if size_bytes < 8:
        _refuse(path, f"has only {size_bytes} bytes")
    (length,) = struct.unpack("<Q", read(0, 8))
    if length > min(MAX_HEADER_BYTES, size_bytes - 8):
        _refuse(path, f"says that its header has {length} bytes, but the file has {size_bytes}")
    tensors = _parse_header(path, read(8, length))
    start = 8 + length
    spans: list[TensorSpan] = []
    end = 0
    for begin, finish, name in sorted(tensors):
        if begin != end or finish < begin:
            _refuse(path, f"has a gap or an overlap at tensor {name[:80]!r}")
        end = finish
        if finish > begin:
            spans.append(TensorSpan(name, start + begin, finish - begin))
    if start + end > size_bytes:
        _refuse(path, f"is truncated: its tensors need {start + end} bytes, it has {size_bytes}")
    if start + end < size_bytes:
        _refuse(path, f"has {size_bytes - start - end} bytes after its last tensor")
    return SafetensorsLayout(start, tuple(spans))


def _parse_header(path: str, header: bytes) -> list[tuple[int, int, str]]:
    try:
        table = json.loads(header.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _error(path, "has a header that is not JSON") from error
    if not isinstance(table, dict):
        _refuse(path, "has a header that is not a table of tensors")
    tensors = []
    for name, entry in table.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        match offsets:
            case [int(begin), int(end)] if begin >= 0:
                tensors.append((begin, end, name))
            case _:
                _refuse(path, f"has no offsets for tensor {name[:80]!r}")
    return tensors


def _refuse(path: str, reason: str) -> NoReturn:
    raise _error(path, reason)


def _error(path: str, reason: str) -> ModelError:
    return ModelError(f"{path} {reason}", advice="get the file again from where it came from")
