"""Does this CPU's integer kernel add up right? Asked before a form of the compiled graph is chosen.

x86 CPUs without VNNI multiply u8 by s8 in pairs whose sum is kept in 16 bits: 2 * 255 * 127 does not fit and is cut off
without a word. On real weights that costs 2 to 5 % of a product (emulated on our demonstration model): too little for a
comparison of logits to notice, too much to accept. So the worst case is multiplied and compared exactly.
"""

from collections.abc import Callable

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kensho.runtime.graph.graph_int8 import Form
from kensho.runtime.graph.graph_ops import INT8, INT32, UINT8, GraphWriter
from kensho.runtime.graph.quantize import LIMIT

Activations = NDArray[np.uint8 | np.int8]
Multiply = Callable[[Activations, NDArray[np.int8]], NDArray[np.int32]]
_INNER, _OUTPUTS = 256, 64
_ROWS = (1, 4)
"""One row takes the matrix-vector kernel, several the packing one."""


class Product:
    """Multiplies by a fixed int8 matrix (K, N), with the kernel of the mapped or of the packed tier."""

    def __init__(self, weights: NDArray[np.int8], dtype: type[np.uint8] | type[np.int8], *, is_packed: bool) -> None:
        graph = GraphWriter()
        graph.input("a", INT8 if dtype is np.int8 else UINT8, ("rows", weights.shape[0]))
        graph.output("sums", INT32, ("rows", weights.shape[1]))
        graph.node("MatMulInteger", ["a", graph.constant("weights", weights)], "sums")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.disable_prepacking", "0" if is_packed else "1")
        self._engine = onnxruntime.InferenceSession(
            graph.serialize("probe", {}), options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, activations: Activations) -> NDArray[np.int32]:
        """(rows, K) of the dtype -> (rows, N)."""
        sums: NDArray[np.int32] = self._engine.run(["sums"], {"a": activations})[0]
        return sums


def sums_are_exact(form: Form, multiply: Multiply) -> bool:
    """Whether products of the form's activations with weights up to +-127 come out exactly, for 1 and 4 rows."""
    weights = np.full((_INNER, _OUTPUTS), LIMIT, np.int8)
    weights[:, ::2] = -LIMIT
    expected = form.largest * _INNER * weights[0].astype(np.int32)
    return all(
        bool((multiply(np.full((rows, _INNER), form.largest, form.dtype), weights) == expected).all()) for rows in _ROWS
    )


def multiply_mapped(activations: Activations, weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """(rows, K) x (K, N) by the kernel of the mapped tier."""
    return Product(weights, activations.dtype.type, is_packed=False)(activations)


def multiply_packed(activations: Activations, weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """(rows, K) x (K, N) by the kernel of the packed tier."""
    return Product(weights, activations.dtype.type, is_packed=True)(activations)
