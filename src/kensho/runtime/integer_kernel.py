"""Does this CPU's integer kernel add up right? Asked before a form of the compiled graph is chosen.

x86 CPUs without VNNI multiply u8 by s8 in pairs whose sum is kept in 16 bits: 2 * 255 * 127 does not fit and is cut off
without a word. On real weights that costs 2 to 5 % of a product (emulated on our demonstration model): too little for a
comparison of logits to notice, too much to accept. So the worst case is multiplied and compared exactly.
"""

from collections.abc import Callable

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kensho.runtime.graph_ops import INT32, UINT8, GraphWriter
from kensho.runtime.quantize import LIMIT

Multiply = Callable[[NDArray[np.uint8], NDArray[np.int8]], NDArray[np.int32]]
_INNER, _OUTPUTS = 256, 64
_ROWS = (1, 4)
"""One row takes the matrix-vector kernel, several the packing one."""


def sums_are_exact(largest: int, multiply: Multiply) -> bool:
    """Whether products of activations up to `largest` with weights up to +-127 come out exactly, for 1 and 4 rows."""
    weights = np.full((_INNER, _OUTPUTS), LIMIT, np.int8)
    weights[:, ::2] = -LIMIT
    expected = largest * _INNER * weights[0].astype(np.int32)
    return all(
        bool((multiply(np.full((rows, _INNER), largest, np.uint8), weights) == expected).all()) for rows in _ROWS
    )


def multiply_mapped(activations: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """(rows, K) x (K, N) by the kernel of the mapped tier."""
    return _multiply(activations, weights, "1")


def multiply_packed(activations: NDArray[np.uint8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """(rows, K) x (K, N) by the kernel of the packed tier."""
    return _multiply(activations, weights, "0")


def _multiply(activations: NDArray[np.uint8], weights: NDArray[np.int8], disable_prepacking: str) -> NDArray[np.int32]:
    graph = GraphWriter()
    graph.input("a", UINT8, ("rows", weights.shape[0]))
    graph.output("sums", INT32, ("rows", weights.shape[1]))
    graph.node("MatMulInteger", ["a", graph.constant("weights", weights)], "sums")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_prepacking", disable_prepacking)
    engine = onnxruntime.InferenceSession(graph.serialize("probe", {}), options, providers=["CPUExecutionProvider"])
    sums: NDArray[np.int32] = engine.run(["sums"], {"a": activations})[0]
    return sums
