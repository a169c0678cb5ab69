"""The operations of one decoder step in order, before anything is said about ONNX or number formats. Pure.

`link` lays them out for a model; `fuse` joins linear maps of the same input into one matrix (q, k, v; gate, up):
fewer, larger products and one quantisation of the input instead of three. Values are names; weights are named by
their tensors. The raw tier lowers the linked form (its weights must stay where they are), the compiled one the fused.
"""

from collections.abc import Callable, Iterable

from kensho.base.structs import Struct
from kensho.runtime.model.model_spec import EMBEDDING, Activation, ModelSpec

INPUT_IDS = "input_ids"
LOGITS = "logits"


class Embed(Struct):
    """out = table[ids] * embedding scale."""

    out: str
    table: str


class Norm(Struct):
    """out = rms_norm(x) * gain."""

    out: str
    x: str
    gain: str


class AddNorm(Struct):
    """total = x + skip; out = rms_norm(total) * gain."""

    out: str
    total: str
    x: str
    skip: str
    gain: str


class HeadNorm(Struct):
    """rms_norm of each head by itself (the q and k norms of Gemma 3)."""

    out: str
    x: str
    gain: str
    heads: int


class Linear(Struct):
    """outs[i] = x @ weights[i].T; several weights once fused. Weights are (rows = outputs, columns = inputs)."""

    outs: tuple[str, ...]
    x: str
    weights: tuple[str, ...]


class Attention(Struct):
    """Causal attention of layer `layer` with rotary embedding, window and KV cache."""

    out: str
    query: str
    key: str
    value: str
    layer: int


class Gated(Struct):
    """out = activation(gate) * up."""

    activation: Activation
    out: str
    gate: str
    up: str


class Head(Struct):
    """out = last position of x @ table.T."""

    out: str
    x: str
    table: str


Op = Embed | Norm | AddNorm | HeadNorm | Linear | Attention | Gated | Head


def link(spec: ModelSpec, on_layer: Callable[[int, int], None] | None = None) -> list[Op]:
    """The operations of one step of the model. `on_layer(done, total)` is called for each layer."""
    total = len(spec.layers)
    ops: list[Op] = [
        Embed("embedded", EMBEDDING),
        Norm("layer.0.input", "embedded", "model.layers.0.input_layernorm.weight"),
    ]
    skip = "embedded"
    for index in range(total):
        is_last = index == total - 1
        next_gain = "model.norm.weight" if is_last else f"model.layers.{index + 1}.input_layernorm.weight"
        next_input = "normed" if is_last else f"layer.{index + 1}.input"
        ops += _layer(spec, index, skip, next_input, next_gain)
        skip = f"layer.{index}.output"
        if on_layer:
            on_layer(index + 1, total)
    ops.append(Head(LOGITS, "normed", spec.head_tensor))
    return ops


def fuse(ops: Iterable[Op], on_op: Callable[[], None] | None = None) -> list[Op]:
    """Neighbouring linear maps of the same input joined into one. `on_op` is called for each op looked at."""
    fused: list[Op] = []
    for op in ops:
        last = fused[-1] if fused else None
        if isinstance(op, Linear) and isinstance(last, Linear) and last.x == op.x:
            fused[-1] = Linear(last.outs + op.outs, op.x, last.weights + op.weights)
        else:
            fused.append(op)
        if on_op:
            on_op()
    return fused


def _layer(spec: ModelSpec, index: int, skip: str, next_input: str, next_gain: str) -> list[Op]:
    """One layer: from the residual stream `skip` and its normed input to the stream after it and the next input."""
    at, tensor = f"layer.{index}.", f"model.layers.{index}."
    ops: list[Op] = []

    def linear(out: str, x: str, weight: str) -> str:
        ops.append(Linear((at + out,), at + x, (f"{tensor}{weight}_proj.weight",)))
        return at + out

    def head_norm(x: str, heads: int) -> str:
        if not spec.has_head_norms:
            return at + x
        ops.append(HeadNorm(f"{at}{x}_normed", at + x, f"{tensor}self_attn.{x}_norm.weight", heads))
        return f"{at}{x}_normed"

    def sandwich_norm(x: str, norm: str) -> str:
        if not spec.has_sandwich_norms:
            return x
        ops.append(Norm(f"{x}_normed", x, f"{tensor}{norm}_layernorm.weight"))
        return f"{x}_normed"

    for part in "qkv":
        linear(part, "input", f"self_attn.{part}")
    query, key = head_norm("q", spec.heads), head_norm("k", spec.kv_heads)
    ops.append(Attention(at + "attended", query, key, at + "v", index))
    attended = sandwich_norm(linear("o", "attended", "self_attn.o"), "post_attention")
    # Without sandwich norms Hugging Face calls the norm before the feed-forward half "post attention".
    before = "pre_feedforward" if spec.has_sandwich_norms else "post_attention"
    ops.append(AddNorm(at + "mlp_input", at + "middle", attended, skip, f"{tensor}{before}_layernorm.weight"))
    linear("gate", "mlp_input", "mlp.gate")
    linear("up", "mlp_input", "mlp.up")
    ops.append(Gated(spec.activation, at + "gated", at + "gate", at + "up"))
    fed = sandwich_norm(linear("down", "gated", "mlp.down"), "post_feedforward")
    ops.append(AddNorm(next_input, at + "output", fed, at + "middle", next_gain))
    return ops
