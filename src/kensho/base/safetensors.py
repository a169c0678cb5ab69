"""The table of a safetensors file, as far as everybody reads it: names and where their bytes are. Pure.

Format (https://github.com/huggingface/safetensors): u64 little-endian length N of the header; N bytes of JSON that give
each tensor's `dtype`, `shape` and `data_offsets` [begin, end) relative to the end of the header; then the data. What a
publisher needs to cut a file and what the compiler needs to read it differ; that the table is hostile until it was
checked does not.
"""

import json
from typing import NoReturn

from kensho.base.errors import ModelError
from kensho.base.structs import Struct

_MAX_OFFSET = 2**48


class TableEntry(Struct):
    """One row. `dtype` and `shape` are as they stand there, unchecked."""

    name: str
    dtype: object
    shape: object
    begin: int
    end: int


def parse_table_entries(header: bytes, *, file: str) -> list[TableEntry]:
    """The rows of the JSON header in the order of their bytes. ModelError names `file` if it is not such a table."""
    table = parse_object(header, file)
    table.pop("__metadata__", None)
    entries = []
    for name, row in table.items():
        if not isinstance(row, dict):
            refuse(file, f"tensor {name[:80]!r} has no description")
        match row.get("data_offsets"):
            case [int(begin), int(end)] if type(begin) is type(end) is int and 0 <= begin <= end < _MAX_OFFSET:
                entries.append(TableEntry(name, row.get("dtype"), row.get("shape"), begin, end))
            case _:
                refuse(file, f"tensor {name[:80]!r} has impossible offsets")
    return sorted(entries, key=lambda entry: (entry.begin, entry.end))


def parse_object(data: bytes, file: str) -> dict[str, object]:
    """A JSON object without a key that occurs twice. ModelError."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice")
        return result

    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _error(file, f"its table is not valid JSON ({str(error)[:120]})") from error
    if not isinstance(document, dict):
        refuse(file, "its table is not a JSON object")
    return document


def refuse(file: str, why: str) -> NoReturn:
    """ModelError in one sentence."""
    raise _error(file, why)


def _error(file: str, why: str) -> ModelError:
    return ModelError(f"{file} is not a usable safetensors file: {why}", advice="download or export the model again")
