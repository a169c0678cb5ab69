"""Where the tensors of a safetensors file begin and end, for a publisher that cuts at their borders. Pure.

The tensors must cover the data without gap or overlap. A file that is not exactly so is a ModelError: it is refused
before anything of it is published. Only publishers read this table; a client never parses it before the digest of the
file is verified.
"""

import struct
from collections.abc import Callable

from kensho.base.safetensors import parse_table_entries, refuse
from kensho.base.structs import Struct

ReadAt = Callable[[int, int], bytes]
"""(offset, length) -> that many bytes of the file, fewer only at its end."""

MAX_HEADER_BYTES = 100_000_000
"""The limit of the reference implementation."""


class TensorSpan(Struct):
    name: str
    offset: int
    """From the beginning of the file."""
    size_bytes: int


class SafetensorsLayout(Struct):
    header_bytes: int
    """The eight bytes of the length included: the first tensor begins here."""
    tensors: tuple[TensorSpan, ...]
    """In the order of their data; empty tensors left out."""


def read_layout(path: str, size_bytes: int, read: ReadAt) -> SafetensorsLayout:
    """The layout of the file. ModelError in one sentence if it is truncated or otherwise odd.

    Reads the header only (two calls of `read`), at most MAX_HEADER_BYTES.
    """
    if size_bytes < 8:
        refuse(path, f"it is truncated: it has only {size_bytes} bytes")
    (length,) = struct.unpack("<Q", read(0, 8))
    if length > min(MAX_HEADER_BYTES, size_bytes - 8):
        refuse(path, f"it is truncated: its header should have {length} bytes, the file has {size_bytes}")
    start = 8 + length
    spans: list[TensorSpan] = []
    end = 0
    for entry in parse_table_entries(read(8, length), file=path):
        if entry.begin != end:
            refuse(path, f"there is a gap or an overlap at tensor {entry.name[:80]!r}")
        end = entry.end
        if end > entry.begin:
            spans.append(TensorSpan(entry.name, start + entry.begin, end - entry.begin))
    if start + end > size_bytes:
        refuse(path, f"it is truncated: its tensors need {start + end} bytes, it has {size_bytes}")
    if start + end < size_bytes:
        refuse(path, f"it has {size_bytes - start - end} bytes after its last tensor")
    return SafetensorsLayout(start, tuple(spans))
