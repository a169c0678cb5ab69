"""Lower a decoder's operations to an ONNX graph for ONNX Runtime on a CPU.

Inputs: `input_ids` int64 (1, tokens); `last_position` int32 (1,) and `total_length` int32 (1,), both counted with the
new tokens; `past.<layer>.key|value` float32 (1, kv heads, capacity, head_dim). Outputs: `logits` float32
(1, vocabulary) of the last position; `present.<layer>.key|value`, to be bound to the same buffers as the past ones.
What depends on the number format (embedding, linear maps, head) is a `Lowering`: `graph_raw` or `graph_int8`.
"""

from collections.abc import Iterable
from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray

from kensho.runtime.graph.decoder import (
    INPUT_IDS,
    LOGITS,
    AddNorm,
    Attention,
    Embed,
    Gated,
    Head,
    HeadNorm,
    Linear,
    Norm,
    Op,
)
from kensho.runtime.graph.graph_ops import FLOAT, INT32, INT64, MICROSOFT, GraphWriter
from kensho.runtime.model.model_spec import Activation, ModelSpec
from kensho.runtime.model.rope import Rope, rope_tables

LAST_POSITION = "last_position"
TOTAL_LENGTH = "total_length"


class Lowering(Protocol):
    """How one tier stores and multiplies weights."""

    def embed(self, graph: GraphWriter, op: Embed, scale: float) -> None: ...

    def linear(self, graph: GraphWriter, op: Linear) -> None: ...

    def head(self, graph: GraphWriter, x: str, op: Head) -> None:
        """`x` is the last position of op.x, (1, 1, hidden); the result is (1, 1, vocabulary)."""
        ...

    def gain(self, tensor: str) -> NDArray[np.float32]:
        """The factor of a norm, the family's offset folded in."""
        ...

    def rope(self, graph: GraphWriter, name: str) -> str:
        """The table `name` of `rope_constants` as a constant: 8 MB in all for 270M and 4096 positions."""
        ...


def build_graph(spec: ModelSpec, ops: Iterable[Op], lowering: Lowering, max_positions: int) -> bytes:
    """The bytes of the graph. Its metadata tells a session the sizes (`session.GraphFacts`)."""
    graph = GraphWriter()
    graph.input(INPUT_IDS, INT64, (1, "tokens"))
    graph.input(LAST_POSITION, INT32, (1,))
    graph.input(TOTAL_LENGTH, INT32, (1,))
    graph.output(LOGITS, FLOAT, (1, spec.vocab_size))
    for op in ops:
        _lower(graph, spec, op, lowering)
    facts = {
        "kensho.layers": len(spec.layers),
        "kensho.kv_heads": spec.kv_heads,
        "kensho.head_dim": spec.head_dim,
        "kensho.vocab_size": spec.vocab_size,
        "kensho.max_positions": max_positions,
    }
    return graph.serialize(spec.family, facts)


def _lower(graph: GraphWriter, spec: ModelSpec, op: Op, lowering: Lowering) -> None:
    match op:
        case Embed():
            lowering.embed(graph, op, spec.embedding_scale)
        case Norm():
            gain = graph.constant(op.gain, lowering.gain(op.gain))
            _norm(graph, spec, op.x, gain, op.out)
        case AddNorm():
            gain = graph.constant(op.gain, lowering.gain(op.gain))
            graph.node(
                "SkipSimplifiedLayerNormalization",
                [op.x, op.skip, gain],
                [op.out, "", "", op.total],
                domain=MICROSOFT,
                epsilon=spec.norm_epsilon,
            )
        case HeadNorm():
            gain = graph.constant(op.gain, lowering.gain(op.gain))
            by_head = graph.constant(f"shape.{op.heads}", np.array([1, -1, op.heads, spec.head_dim], np.int64))
            flat = graph.constant(f"shape.{op.heads}.flat", np.array([1, -1, op.heads * spec.head_dim], np.int64))
            split = graph.node("Reshape", [op.x, by_head], f"{op.out}.split")
            normed = _norm(graph, spec, split, gain, f"{op.out}.normed")
            graph.node("Reshape", [normed, flat], op.out)
        case Linear():
            lowering.linear(graph, op)
        case Attention():
            _lower_attention(graph, spec, op, lowering)
        case Gated():
            graph.node("Mul", [_activate(graph, op.activation, op.gate, f"{op.out}.active"), op.up], op.out)
        case Head():
            # Only the last position is wanted: for 270M the head is 63 % of all weights.
            last = graph.node("Gather", [op.x, graph.constant("last", np.array([-1], np.int64))], "last_normed", axis=1)
            lowering.head(graph, last, Head(f"{op.out}.by_position", op.x, op.table))
            shape = graph.constant("shape.logits", np.array([1, spec.vocab_size], np.int64))
            graph.node("Reshape", [f"{op.out}.by_position", shape], op.out)
        case _:
            assert_never(op)


def _norm(graph: GraphWriter, spec: ModelSpec, x: str, gain: str, out: str) -> str:
    return graph.node("SimplifiedLayerNormalization", [x, gain], out, axis=-1, epsilon=spec.norm_epsilon, stash_type=1)


def _activate(graph: GraphWriter, activation: Activation, x: str, out: str) -> str:
    match activation:
        case "gelu_tanh":
            return graph.node("Gelu", [x], out, approximate="tanh")
        case "silu":
            # QuickGelu is x * sigmoid(alpha * x).
            return graph.node("QuickGelu", [x], out, domain=MICROSOFT, alpha=1.0)
        case _:
            assert_never(activation)


def _lower_attention(graph: GraphWriter, spec: ModelSpec, op: Attention, lowering: Lowering) -> None:
    layer = spec.layers[op.layer]
    ropes = [lowering.rope(graph, name) for name in _rope_names(layer.rope)]
    cache = (1, spec.kv_heads, "capacity", spec.head_dim)
    past = [graph.input(f"past.{op.layer}.{part}", FLOAT, cache) for part in ("key", "value")]
    present = [graph.output(f"present.{op.layer}.{part}", FLOAT, cache) for part in ("key", "value")]
    graph.node(
        "GroupQueryAttention",
        [op.query, op.key, op.value, *past, LAST_POSITION, TOTAL_LENGTH, *ropes],
        [op.out, *present],
        domain=MICROSOFT,
        num_heads=spec.heads,
        kv_num_heads=spec.kv_heads,
        scale=spec.attention_scale,
        do_rotary=1,
        local_window_size=-1 if layer.window is None else layer.window,
    )


def rope_constants(spec: ModelSpec, positions: int) -> dict[str, NDArray[np.float32]]:
    """The tables of all ropes of the model by the names of their constants, each (positions, head_dim / 2)."""
    tables: dict[str, NDArray[np.float32]] = {}
    for rope in dict.fromkeys(layer.rope for layer in spec.layers):
        tables.update(zip(_rope_names(rope), rope_tables(rope, spec.head_dim, positions), strict=True))
    return tables


def _rope_names(rope: Rope) -> tuple[str, str]:
    return f"rope.{rope.name}.cos", f"rope.{rope.name}.sin"
