"""The raw tier: an exact graph whose weights stay in the delivered safetensors, at their own offsets. No compile.

A bf16 weight is widened in the step that uses it (no CPU kernel multiplies bf16). Rules measured in the design
notes, 270M: the head is cut into slices of 4096 rows, and the session runs nodes by priority, so that one slice's
float32 copy is alive at a time: 36 ms a token and 605 MB at the peak instead of 70 ms and 1 086 MB.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kensho.runtime.graph.decoder import INPUT_IDS, Embed, Head, Linear
from kensho.runtime.graph.graph_ops import FLOAT, MICROSOFT, GraphWriter
from kensho.runtime.model.hf_config import Model
from kensho.runtime.model.safetensors import Tensor
from kensho.runtime.model.tensor_reader import TensorReader

_HEAD_SLICE_ROWS = 4096


class RawLowering:
    """Lowers the linked (not fused) operations of `model`."""

    def __init__(self, model: Model, reader: TensorReader, ropes: Mapping[str, NDArray[np.float32]]) -> None:
        self._model = model
        self._reader = reader
        self._ropes = ropes

    def embed(self, graph: GraphWriter, op: Embed, scale: float) -> None:
        table = _stored(graph, self._model.tensors[op.table])
        rows = graph.node("Gather", [table, INPUT_IDS], f"{op.out}.rows", axis=0)
        wide = graph.node("Cast", [rows], f"{op.out}.float", to=FLOAT)
        graph.node("Mul", [wide, graph.constant("embedding_scale", np.array(scale, np.float32))], op.out)

    def linear(self, graph: GraphWriter, op: Linear) -> None:
        for out, weight in zip(op.outs, op.weights, strict=True):
            _multiply(graph, op.x, _stored(graph, self._model.tensors[weight]), out)

    def head(self, graph: GraphWriter, x: str, op: Head) -> None:
        table = self._model.tensors[op.table]
        rows, columns = table.shape
        row_bytes = table.size_bytes // rows
        outs = []
        for begin in range(0, rows, _HEAD_SLICE_ROWS):
            count = min(_HEAD_SLICE_ROWS, rows - begin)
            part = graph.external(
                f"head.{begin}",
                table.dtype,
                (count, columns),
                file=table.file,
                offset=table.offset + begin * row_bytes,
                size_bytes=count * row_bytes,
            )
            outs.append(_multiply(graph, x, part, f"{op.out}.{begin}"))
        graph.node("Concat", outs, op.out, axis=-1)

    def gain(self, tensor: str) -> NDArray[np.float32]:
        return self._reader.vector(self._model.tensors[tensor]) + np.float32(self._model.spec.norm_offset)

    def rope(self, graph: GraphWriter, name: str) -> str:
        # Inline although it may be 8 MB: a session takes external data from one folder, and that is the model's.
        return graph.constant(name, self._ropes[name])


def _stored(graph: GraphWriter, tensor: Tensor) -> str:
    return graph.external(
        tensor.name, tensor.dtype, tensor.shape, file=tensor.file, offset=tensor.offset, size_bytes=tensor.size_bytes
    )


def _multiply(graph: GraphWriter, x: str, weight: str, out: str) -> str:
    wide = graph.node("Cast", [weight], f"{out}.weight", to=FLOAT)
    return graph.node("FusedMatMul", [x, wide], out, domain=MICROSOFT, transB=1)
