"""Read the tensor tables of a model folder's safetensors files: what is where, without reading the weights.

A safetensors file is: 8 bytes little-endian length, that many bytes of JSON, the tensors' bytes. The file comes from
a stranger, so every length is bounded and every tensor must lie inside the file, fit its shape and share no byte with
another (https://github.com/huggingface/safetensors, "Format"; its 100 MB header limit is 16 MiB here: 100 000 tensors).
Anything odd is a ModelError that names the file.

    tensors = read_tensors(folder)
    tensors["model.norm.weight"].shape
"""

import os
import struct
from math import prod
from pathlib import Path
from typing import TypeGuard, cast

from kensho.base.errors import ModelError
from kensho.base.safetensors import TableEntry, parse_object, parse_table_entries, refuse
from kensho.base.structs import Struct

WEIGHTS = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_SHARDS = 512
MAX_DIMS = 8
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes of one element. Types that pack several elements into a byte are not listed and so are refused."""


class Tensor(Struct):
    """Where one tensor's bytes are: little-endian, row-major, `size_bytes` from `offset` of `folder / file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: int
    size_bytes: int


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of the model in `folder` (one file, or shards with their index), by name.

    Reads only the tables: O(number of tensors). Raises ModelError.
    """
    if (folder / WEIGHTS).is_file():
        return _read_file(folder, WEIGHTS)
    if not (folder / SHARD_INDEX).is_file():
        raise ModelError(
            f"{folder.name} holds no {WEIGHTS}",
            advice="give the folder that holds config.json, model.safetensors and tokenizer.json",
        )
    shards = _read_shard_index(folder / SHARD_INDEX)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards.values())):
        tensors |= {name: tensor for name, tensor in _read_file(folder, shard).items() if shards.get(name) == shard}
    if absent := sorted(set(shards) - set(tensors)):
        refuse(SHARD_INDEX, f"it names {absent[0]!r}, which its shard does not hold")
    return tensors


def parse_table(header: bytes, data_bytes: int, *, file: str, data_offset: int) -> dict[str, Tensor]:
    """The tensors that a safetensors JSON header describes. Pure. Raises ModelError.

    `data_bytes` is what follows the header in the file, `data_offset` where that begins.
    """
    tensors = [_check_entry(entry, file, data_offset) for entry in parse_table_entries(header, file=file)]
    end = data_offset
    for tensor in tensors:
        if tensor.offset < end:
            refuse(file, f"tensor {tensor.name[:80]!r} overlaps another")
        end = tensor.offset + tensor.size_bytes
    if end > data_offset + data_bytes:
        refuse(file, f"it is truncated: {end - data_offset - data_bytes} bytes of tensors are missing")
    return {tensor.name: tensor for tensor in tensors}


def _read_file(folder: Path, file: str) -> dict[str, Tensor]:
    try:
        with (folder / file).open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            if len(prefix) < 8:
                refuse(file, "it is truncated: shorter than 8 bytes")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(MAX_HEADER_BYTES, size - 8):
                refuse(file, f"its table of {length} bytes is longer than the file or than {MAX_HEADER_BYTES} bytes")
            header = stream.read(length)
    except OSError as error:
        raise ModelError(
            f"{file} cannot be read ({error.strerror})", advice="check the folder and its permissions"
        ) from error
    return parse_table(header, size - 8 - length, file=file, data_offset=8 + length)


def _read_shard_index(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_HEADER_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror})", advice="check its permissions") from error
    if len(data) > MAX_HEADER_BYTES:
        refuse(path.name, f"it is longer than {MAX_HEADER_BYTES} bytes")
    shards = parse_object(data, path.name).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        refuse(path.name, "it has no weight_map")
    for shard in set(map(str, shards.values())):
        # A shard is a file beside its index: a separator or `..` would read outside the verified folder.
        if not shard.endswith(".safetensors") or "/" in shard or "\\" in shard or shard.startswith("."):
            refuse(path.name, f"shard name {shard[:80]!r} is not a plain file name")
    if len(set(shards.values())) > MAX_SHARDS:
        refuse(path.name, f"it names more than {MAX_SHARDS} shards")
    return cast("dict[str, str]", shards)


def _check_entry(entry: TableEntry, file: str, data_offset: int) -> Tensor:
    name, dtype, shape = entry.name, entry.dtype, entry.shape
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        refuse(file, f"tensor {name[:80]!r} has the unknown type {str(dtype)[:20]!r}")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        refuse(file, f"tensor {name[:80]!r} has an impossible shape")
    if entry.end - entry.begin != prod(shape) * ITEM_BYTES[dtype]:
        refuse(file, f"tensor {name[:80]!r}: its shape and its bytes do not fit together")
    return Tensor(name, dtype, tuple(shape), file, data_offset + entry.begin, entry.end - entry.begin)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)
