"""Collect the nodes and constants of an ONNX graph and serialise it. The only file that knows the `onnx` package.

Opset 21 and `com.microsoft` 1, IR 10. Constants are inline or point into a file beside the graph; nodes, not bytes,
cost load time (about 50 us each in ONNX Runtime's session finalisation), so constants under 64 KiB stay inline.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
FLOAT = int(TensorProto.FLOAT)
INT32 = int(TensorProto.INT32)
INT64 = int(TensorProto.INT64)
INT8 = int(TensorProto.INT8)
UINT8 = int(TensorProto.UINT8)
INLINE_BYTES = 64 * 1024
_OPSETS = {"": 21, MICROSOFT: 1}
_IR_VERSION = 10
STORED_TYPES = {
    "BF16": TensorProto.BFLOAT16,
    "F16": TensorProto.FLOAT16,
    "F32": TensorProto.FLOAT,
    "I8": TensorProto.INT8,
    "I32": TensorProto.INT32,
}
"""safetensors' type names -> ONNX's."""
Shape = Sequence[int | str]
Attribute = int | float | str | Sequence[int]


class GraphWriter:
    """One graph in the making. Value names are the caller's; a constant of one name is stored once."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def node(
        self, op: str, inputs: Sequence[str], out: str | Sequence[str], *, domain: str = "", **attributes: Attribute
    ) -> str:
        """Append a node; returns its first output's name."""
        outs = [out] if isinstance(out, str) else list(out)
        self._nodes.append(
            helper.make_node(op, list(inputs), outs, name=f"{outs[0]}/{op}", domain=domain, **attributes)  # type: ignore[arg-type]
        )
        return outs[0]

    def constant(self, name: str, array: NDArray[np.generic]) -> str:
        """A constant stored in the graph itself."""
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def external(self, name: str, dtype: str, shape: Sequence[int], *, file: str, offset: int, size_bytes: int) -> str:
        """A constant whose bytes are in `file` beside the graph. Two constants may name the same bytes."""
        tensor = TensorProto(name=name, data_type=STORED_TYPES[dtype], dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", file), ("offset", offset), ("length", size_bytes)):
            tensor.external_data.add(key=key, value=str(value))
        self._constants.setdefault(name, tensor)
        return name

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    @staticmethod
    def extra_input(name: str, dtype: str, shape: Sequence[int]) -> bytes:
        """What to append to a serialised graph so that its constant `name` counts as an input with a default value.

        Protobuf merges the two. ONNX Runtime then still reads the constant in place, but does not prepack it.
        """
        value = helper.make_tensor_value_info(name, STORED_TYPES[dtype], shape)
        patch = onnx.ModelProto(graph=onnx.GraphProto(input=[value]))
        return patch.SerializeToString(deterministic=True)  # type: ignore[no-any-return]

    def output(self, name: str, dtype: int, shape: Shape) -> str:
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def serialize(self, name: str, facts: Mapping[str, int]) -> bytes:
        """The graph's bytes, deterministic. `facts` become metadata that a session can read without `onnx`."""
        graph = helper.make_graph(self._nodes, name, self._inputs, self._outputs, list(self._constants.values()))
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()],
            ir_version=_IR_VERSION,
            producer_name="kensho",
        )
        helper.set_model_props(model, {key: str(value) for key, value in facts.items()})
        return model.SerializeToString(deterministic=True)  # type: ignore[no-any-return]
