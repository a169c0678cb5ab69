"""What the graph builder needs to know of a decoder: values only, the same for every family. Pure.

A family is a combination of these switches, never a branch by name: `families` reads them from config.json, `decoder`
lays the operations out from them.
"""

import json
from typing import Literal

from kensho.base.ids import Digest, digest_of
from kensho.base.structs import Struct, as_dict
from kensho.runtime.model.rope import Rope

Activation = Literal["gelu_tanh", "silu"]
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


class LayerSpec(Struct):
    window: int | None
    """A token sees itself and the window - 1 tokens before it; None = all."""
    rope: Rope


class ModelSpec(Struct):
    """A decoder of a known family. Everything that decides the mathematics, nothing that does not."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_epsilon: float
    norm_offset: float
    """RMS norms multiply by (offset + weight)."""
    has_head_norms: bool
    """Queries and keys are normed head by head."""
    has_sandwich_norms: bool
    """Each half of a layer is normed after it as well as before."""
    activation: Activation
    embedding_scale: float
    is_tied: bool
    """The head multiplies by the embedding table; otherwise by a matrix of its own."""
    attention_scale: float
    max_positions: int
    """What the model was made for; the graph serves this or less."""
    layers: tuple[LayerSpec, ...]

    @property
    def head_tensor(self) -> str:
        """The matrix that makes logits of the last hidden state."""
        return EMBEDDING if self.is_tied else HEAD

    @property
    def query_size(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def kv_bytes_per_position(self) -> int:
        """Keys and values of one token in float32, all layers."""
        return 2 * 4 * self.kv_size * len(self.layers)

    @property
    def digest(self) -> Digest:
        """The schema hash: equal for models that differ in nothing but their weights."""
        return digest_of(json.dumps(as_dict(self), sort_keys=True).encode())


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that a model of this description has (tied head: no tensor of its own)."""
    hidden, inner, head = spec.hidden_size, spec.intermediate_size, spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden)}
    norms = ["input", "post_attention"]
    if spec.has_sandwich_norms:
        norms += ["pre_feedforward", "post_feedforward"]
    for index in range(len(spec.layers)):
        at = f"model.layers.{index}."
        for norm in norms:
            shapes[f"{at}{norm}_layernorm.weight"] = (hidden,)
        shapes[f"{at}self_attn.q_proj.weight"] = (spec.query_size, hidden)
        shapes[f"{at}self_attn.k_proj.weight"] = (spec.kv_size, hidden)
        shapes[f"{at}self_attn.v_proj.weight"] = (spec.kv_size, hidden)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, spec.query_size)
        if spec.has_head_norms:
            shapes[f"{at}self_attn.q_norm.weight"] = (head,)
            shapes[f"{at}self_attn.k_norm.weight"] = (head,)
        shapes[f"{at}mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    if not spec.is_tied:
        shapes[HEAD] = (spec.vocab_size, hidden)
    return shapes
