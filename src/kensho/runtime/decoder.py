"""The operations of one decoder step in order, before anything is said about ONNX or number formats. Pure.

`link` lays them out for a model; `fuse` joins linear maps of the same input into one matrix (q, k, v; gate, up):
fewer, larger products and one quantisation of the input instead of three. Values are names; weights are named by
their tensors. The raw tier lowers the linked form (its weights must stay where they are), the compiled one the fused.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kensho.runtime.hf_config import ModelSpec

INPUT_IDS = "input_ids"
LOGITS = "logits"
TABLE = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class Embed:
    """out = table[ids] * embedding scale."""

    out: str
    table: str


@dataclass(frozen=True, slots=True)
class Norm:
    """out = rms_norm(x) * gain."""

    out: str
    x: str
    gain: str


@dataclass(frozen=True, slots=True)
class AddNorm:
    """total = x + skip; out = rms_norm(total) * gain."""

    out: str
    total: str
    x: str
    skip: str
    gain: str


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """rms_norm of each head by itself (the q and k norms of Gemma 3)."""

    out: str
    x: str
    gain: str
    heads: int


@dataclass(frozen=True, slots=True)
class Linear:
    """outs[i] = x @ weights[i].T; several weights once fused. Weights are (rows = outputs, columns = inputs)."""

    outs: tuple[str, ...]
    x: str
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal attention of layer `layer` with rotary embedding, window and KV cache."""

    out: str
    query: str
    key: str
    value: str
    layer: int


@dataclass(frozen=True, slots=True)
class GatedGelu:
    """out = gelu_tanh(gate) * up."""

    out: str
    gate: str
    up: str


@dataclass(frozen=True, slots=True)
class Head:
    """out = last position of x @ table.T."""

    out: str
    x: str
    table: str


Op = Embed | Norm | AddNorm | HeadNorm | Linear | Attention | GatedGelu | Head


def link(spec: ModelSpec, on_layer: Callable[[int, int], None] | None = None) -> list[Op]:
    """The operations of one step of the model. `on_layer(done, total)` is called for each layer."""
    total = len(spec.layers)
    ops: list[Op] = [
        Embed("embedded", TABLE),
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
    ops.append(Head(LOGITS, "normed", TABLE))
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
    """One layer of Gemma 3: norms before and after both halves ("sandwich"), q and k normed by head."""
    at, tensor = f"layer.{index}.", f"model.layers.{index}."

    def linear(out: str, x: str, weight: str) -> Linear:
        return Linear((at + out,), at + x, (f"{tensor}{weight}_proj.weight",))

    return [
        linear("q", "input", "self_attn.q"),
        linear("k", "input", "self_attn.k"),
        linear("v", "input", "self_attn.v"),
        HeadNorm(at + "q_normed", at + "q", f"{tensor}self_attn.q_norm.weight", spec.heads),
        HeadNorm(at + "k_normed", at + "k", f"{tensor}self_attn.k_norm.weight", spec.kv_heads),
        Attention(at + "attended", at + "q_normed", at + "k_normed", at + "v", index),
        linear("o", "attended", "self_attn.o"),
        Norm(at + "o_normed", at + "o", f"{tensor}post_attention_layernorm.weight"),
        AddNorm(at + "mlp_input", at + "middle", at + "o_normed", skip, f"{tensor}pre_feedforward_layernorm.weight"),
        linear("gate", "mlp_input", "mlp.gate"),
        linear("up", "mlp_input", "mlp.up"),
        GatedGelu(at + "gated", at + "gate", at + "up"),
        linear("down", "gated", "mlp.down"),
        Norm(at + "down_normed", at + "down", f"{tensor}post_feedforward_layernorm.weight"),
        AddNorm(next_input, at + "output", at + "down_normed", at + "middle", next_gain),
    ]
