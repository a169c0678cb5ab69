"""The compiled form: int8 weights [K, N] read straight from the map, activations quantised row by row.

`MatMulInteger` without zero points takes ONNX Runtime's matrix-vector kernel on unpacked weights when there is one
row (3.4 times faster than the usual dynamic-int8 graph without prepacking). So activations become unsigned by adding
`zero`, and zero * (column sum) is subtracted after the product. Scales are per row, not per tensor: the answer must
not depend on how a prompt was cut. The tied table is stored once; the embedding gathers columns of the head's matrix.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kensho.base.structs import Struct
from kensho.runtime.cache.header import WEIGHTS_FILE
from kensho.runtime.graph.decoder import INPUT_IDS, Embed, Head, Linear
from kensho.runtime.graph.graph_ops import FLOAT, GraphWriter
from kensho.runtime.graph.quantize import Scales
from kensho.runtime.graph.weights_layout import Layout

Constant = NDArray[np.float32] | NDArray[np.int32]
_ZEROS = "zeros.tokens"
"""The zero point of the activations, once for each token."""


class Form(Struct):
    """How activations are quantised: to integers from zero - levels to zero + levels, signed if zero is 0."""

    name: str
    levels: int
    zero: int

    @property
    def largest(self) -> int:
        return self.zero + self.levels

    @property
    def dtype(self) -> type[np.uint8] | type[np.int8]:
        return np.uint8 if self.zero else np.int8


FORMS = (Form("u8", 127, 128), Form("s8", 127, 0), Form("u7", 63, 64))
"""u8 suits x86 with VNNI; s8, without zero point to correct, CPUs that multiply signed numbers (ARM); u7 is for CPUs
whose 16-bit sums overflow with u8 (see integer_kernel). `form_choice` asks the CPU."""


class Int8Lowering:
    """Lowers fused operations over a weights.bin of this layout. Everything was quantised before."""

    def __init__(
        self,
        layout: Layout,
        constants: Mapping[str, Constant],
        gains: Mapping[str, NDArray[np.float32]],
        form: Form,
    ) -> None:
        """`constants` are those of `make_constants` and the rope tables; `gains` the folded norm gains."""
        self._layout = layout
        self._constants = constants
        self._gains = gains
        self._form = form

    def embed(self, graph: GraphWriter, op: Embed, scale: float) -> None:
        weights = self._matrix(graph, op.table)
        columns = graph.node("Gather", [weights, INPUT_IDS], f"{op.out}.columns", axis=1)
        rows = graph.node("Transpose", [columns], f"{op.out}.rows", perm=[1, 2, 0])
        wide = graph.node("Cast", [rows], f"{op.out}.float", to=FLOAT)
        scales = self._constant(graph, f"{op.table}.scales")
        by_row = graph.node("Gather", [scales, INPUT_IDS], f"{op.out}.scales", axis=0)
        factor = graph.constant("embedding_scale", np.array(scale, np.float32))
        scaled = graph.node("Mul", [by_row, factor], f"{op.out}.factors")
        last_axis = graph.constant("axis.last", np.array([-1], np.int64))
        graph.node("Mul", [wide, graph.node("Unsqueeze", [scaled, last_axis], f"{op.out}.by_row")], op.out)
        tokens = graph.node("Shape", [INPUT_IDS], "tokens", start=1)
        graph.node("Expand", [self._zero(graph), tokens], _ZEROS)

    def linear(self, graph: GraphWriter, op: Linear) -> None:
        if len(op.outs) == 1:
            self._multiply(graph, op.x, op.weights[0], op.outs[0], zeros=_ZEROS)
            return
        parts = self._layout.matrices[op.weights[0]].parts
        name = f"parts.{'.'.join(map(str, parts))}"
        joined = self._multiply(graph, op.x, op.weights[0], f"{op.outs[0]}.joined", zeros=_ZEROS)
        graph.node("Split", [joined, graph.constant(name, np.array(parts, np.int64))], op.outs, axis=-1)

    def head(self, graph: GraphWriter, x: str, op: Head) -> None:
        self._multiply(graph, x, op.table, op.out, zeros=self._zero(graph))

    def head_as_input(self, table: str) -> bytes:
        """What makes this graph one for the mixed tier, appended to it: the head's matrix is read in place."""
        matrix = self._layout.matrices[table]
        return GraphWriter.extra_input(table, "I8", (matrix.columns, matrix.rows))

    def gain(self, tensor: str) -> NDArray[np.float32]:
        return self._gains[tensor]

    def rope(self, graph: GraphWriter, name: str) -> str:
        return self._constant(graph, name)

    def _multiply(self, graph: GraphWriter, x: str, weight: str, out: str, *, zeros: str) -> str:
        """out = x @ W: x in steps of its row's largest value / levels, integers, then back by row and by column.

        A row of zeros has steps of 0: whatever integers that gives, they become 0 again.
        """
        form = self._form
        per_level = graph.constant(f"per_level.{form.name}", np.array(1 / form.levels, np.float32))
        absolute = graph.node("Abs", [x], f"{out}.abs")
        axes = graph.constant("axes.all_but_rows", np.array([0, 2], np.int64))
        largest = graph.node("ReduceMax", [absolute, axes], f"{out}.largest", keepdims=0)
        steps = graph.node("Mul", [largest, per_level], f"{out}.steps")
        quantized = graph.node("QuantizeLinear", [x, steps, zeros], f"{out}.quantized", axis=1)
        product = graph.node("MatMulInteger", [quantized, self._matrix(graph, weight)], f"{out}.product")
        centered = product
        if form.zero:
            centered = graph.node("Sub", [product, self._constant(graph, f"{weight}.sums")], f"{out}.centered")
        by_row = graph.node("DequantizeLinear", [centered, steps], f"{out}.by_row", axis=1)
        return graph.node("Mul", [by_row, self._constant(graph, f"{weight}.scales")], out)

    def _zero(self, graph: GraphWriter) -> str:
        return graph.constant(f"zero.{self._form.name}", np.array([self._form.zero], self._form.dtype))

    def _matrix(self, graph: GraphWriter, name: str) -> str:
        matrix, place = self._layout.matrices[name], self._layout.places[name]
        return graph.external(
            name,
            "I8",
            (matrix.columns, matrix.rows),
            file=WEIGHTS_FILE,
            offset=place.offset,
            size_bytes=place.size_bytes,
        )

    def _constant(self, graph: GraphWriter, name: str) -> str:
        array = self._constants[name]
        place = self._layout.places.get(name)
        if place is None:
            return graph.constant(name, array)
        dtype = "I32" if array.dtype == np.int32 else "F32"
        return graph.external(
            name, dtype, array.shape, file=WEIGHTS_FILE, offset=place.offset, size_bytes=place.size_bytes
        )


def make_constants(scales: Mapping[str, Scales], form: Form) -> dict[str, Constant]:
    """For each matrix: `.scales`, and `.sums` times the activations' zero point."""
    constants: dict[str, Constant] = {}
    for name, own in scales.items():
        constants[f"{name}.scales"] = own.scales
        constants[f"{name}.sums"] = own.sums * np.int32(form.zero)
    return constants
