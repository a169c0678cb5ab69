"""Where everything lies in weights.bin: int8 matrices [K, N], and the scales, sums and rope tables too large to be
inline in the graph. Pure.

Places are page-aligned and follow each other without gap, padding included, so that they tile the file: the header
has one section, with its hashes, for each.
"""

from collections.abc import Iterable

from kensho.base.structs import Struct
from kensho.runtime.graph.decoder import Embed, Head, Linear, Op
from kensho.runtime.graph.graph_ops import INLINE_BYTES
from kensho.runtime.model.hf_config import Model

PAGE_BYTES = 4096


class Place(Struct):
    """`size_bytes` of use from `offset`; the place ends on the next page boundary."""

    name: str
    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        return -(-(self.offset + self.size_bytes) // PAGE_BYTES) * PAGE_BYTES


class Matrix(Struct):
    """W[columns, rows] in int8: the rows of its source tensors side by side. Its name is the first source's."""

    name: str
    sources: tuple[str, ...]
    parts: tuple[int, ...]
    """Rows of each source."""
    columns: int

    @property
    def rows(self) -> int:
        return sum(self.parts)


class Layout(Struct):
    matrices: dict[str, Matrix]
    places: dict[str, Place]
    """By the name of the constant; a constant without place is inline in the graph."""
    tables: frozenset[str]
    """Names of the places of the embedding and the head, which may be one."""

    @property
    def size_bytes(self) -> int:
        return max(place.end for place in self.places.values())


def plan_layout(model: Model, ops: Iterable[Op], ropes: dict[str, int]) -> Layout:
    """The layout for fused operations and rope tables (name -> bytes)."""
    matrices: dict[str, Matrix] = {}
    places: dict[str, Place] = {}
    tables = set()
    end = 0

    def put(name: str, size_bytes: int) -> None:
        nonlocal end
        places[name] = Place(name, end, size_bytes)
        end = places[name].end

    for op in ops:
        sources = op.weights if isinstance(op, Linear) else (op.table,) if isinstance(op, Embed | Head) else ()
        if sources and sources[0] not in matrices:  # the head of a tied model is its embedding table
            shapes = [model.tensors[source].shape for source in sources]
            matrix = Matrix(sources[0], sources, tuple(rows for rows, _ in shapes), shapes[0][1])
            matrices[matrix.name] = matrix
            if not isinstance(op, Linear):
                tables.add(matrix.name)
            put(matrix.name, matrix.rows * matrix.columns)
            if 4 * matrix.rows >= INLINE_BYTES:
                put(f"{matrix.name}.scales", 4 * matrix.rows)
                put(f"{matrix.name}.sums", 4 * matrix.rows)
    for name, size_bytes in ropes.items():
        if size_bytes >= INLINE_BYTES:
            put(name, size_bytes)
    return Layout(matrices, places, frozenset(tables))
