"""Write the benchmark model (bench/data/make_gemma.py) as the usual dynamic int8 ONNX graph, for a bare ONNX Runtime.

    python write_onnx.py MODEL_FOLDER OUT_FOLDER

What `quantize_dynamic` makes of an export with contrib attention: one scale per tensor for activations, int8 by output
channel for weights, MatMulInteger with a zero point. The table is stored once, as in Kensho's graph: 279 MB instead of
1006. Kensho lays the operations out; the number format is this file's.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors_reader import Weights

from kensho.runtime.graph.decoder import INPUT_IDS, Embed, Head, Linear, link
from kensho.runtime.graph.graph_builder import build_graph, rope_constants
from kensho.runtime.graph.graph_ops import FLOAT, GraphWriter
from kensho.runtime.model.hf_config import read_model

POSITIONS = 4096
FILE = "model.data"


class DynamicLowering:
    def __init__(self, weights: Weights, out: Path, ropes: dict[str, NDArray[np.float32]]) -> None:
        self._weights, self._ropes = weights, ropes
        self._file = (out / FILE).open("wb")
        self._scales: dict[str, NDArray[np.float32]] = {}
        self._places: dict[str, tuple[int, int, int]] = {}

    def embed(self, graph: GraphWriter, op: Embed, scale: float) -> None:
        columns = graph.node("Gather", [self._matrix(graph, op.table), INPUT_IDS], "embedded.columns", axis=1)
        rows = graph.node("Transpose", [columns], "embedded.rows", perm=[1, 2, 0])
        wide = graph.node("Cast", [rows], "embedded.float", to=FLOAT)
        factors = graph.constant("embedded.scales", self._scales[op.table][:, None] * np.float32(scale))
        graph.node("Mul", [wide, graph.node("Gather", [factors, INPUT_IDS], "embedded.by_row", axis=0)], op.out)

    def linear(self, graph: GraphWriter, op: Linear) -> None:
        for out, weight in zip(op.outs, op.weights, strict=True):
            self._multiply(graph, op.x, weight, out)

    def head(self, graph: GraphWriter, x: str, op: Head) -> None:
        self._multiply(graph, x, op.table, op.out)

    def gain(self, tensor: str) -> NDArray[np.float32]:
        return self._weights[tensor] + np.float32(1)

    def rope(self, graph: GraphWriter, name: str) -> str:
        return graph.constant(name, self._ropes[name])

    def _multiply(self, graph: GraphWriter, x: str, weight: str, out: str) -> None:
        names = [f"{out}.{part}" for part in ("quantized", "step", "zero")]
        graph.node("DynamicQuantizeLinear", [x], names)
        product = graph.node("MatMulInteger", [names[0], self._matrix(graph, weight), names[2]], f"{out}.product")
        scales = graph.constant(f"{weight}.scales", self._scales[weight])
        factor = graph.node("Mul", [names[1], scales], f"{out}.factor")
        graph.node("Mul", [graph.node("Cast", [product], f"{out}.float", to=FLOAT), factor], out)

    def _matrix(self, graph: GraphWriter, name: str) -> str:
        if name not in self._places:
            value = self._weights[name]
            scales = np.maximum(np.abs(value).max(axis=1), np.float32(1e-12)) / np.float32(127)
            value /= scales[:, None]
            self._scales[name] = scales
            self._file.seek(-(-self._file.tell() // 4096) * 4096)
            self._places[name] = (self._file.tell(), *value.shape)
            self._file.write(np.ascontiguousarray(np.rint(value).astype(np.int8).T))
            self._file.flush()
        offset, rows, columns = self._places[name]
        return graph.external(name, "I8", (columns, rows), file=FILE, offset=offset, size_bytes=rows * columns)


def main(folder: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    spec = read_model(folder).spec
    lowering = DynamicLowering(Weights(folder), out, rope_constants(spec, POSITIONS))
    (out / "model.onnx").write_bytes(build_graph(spec, link(spec), lowering, POSITIONS))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
