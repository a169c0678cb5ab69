"""The model families: config.json to a `ModelSpec`. A new one is a reader here and a golden (docs/graphs.md). Pure.

Each reader asks for every setting that changes the mathematics of its family, with the defaults of transformers' config
class, and expects the one value that is implemented where there is no choice. What nobody asked for is refused by the
caller (`ConfigReader.refuse_unread`).
"""

from collections.abc import Callable

from kensho.base.errors import ModelError, UnknownArchitecture
from kensho.runtime.model.config_reader import ConfigReader
from kensho.runtime.model.model_spec import LayerSpec, ModelSpec
from kensho.runtime.model.rope import KINDS, read_rope, read_ropes

_MAX_COLUMNS = 65536
"""A row of 65 536 products of u8 and s8 just fits the kernels' 32-bit sums."""


def read_spec(config: ConfigReader) -> ModelSpec:
    """The description of the model. Raises ModelError (impossible), UnknownArchitecture (refused by name)."""
    family = config.value("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        later = f" yet (it needs {AWAITED[family]})" if isinstance(family, str) and family in AWAITED else ""
        raise UnknownArchitecture(
            f"model_type {str(family)[:80]!r} is not implemented{later}",
            advice=f"Kensho runs {', '.join(FAMILIES)}; it refuses rather than guess",
            setting="model_type",
        )
    return FAMILIES[family](config)


def _read_gemma3_text(config: ConfigReader) -> ModelSpec:
    """Gemma 3, text only. Defaults are those of Gemma3TextConfig in transformers 4.57.6."""
    architectures = config.value("architectures")
    if architectures not in (None, ["Gemma3ForCausalLM"]):
        raise config.unknown("architectures")
    config.expect("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    config.expect("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    config.expect("attention_bias", (False,), False)
    config.expect("tie_word_embeddings", (True,), True)
    heads, kv_heads, head_dim = _heads(config, kv_default=None, dim_default=256)
    hidden_size = config.integer("hidden_size", 1, _MAX_COLUMNS)
    full, sliding = read_ropes(config, full_theta=1e6, local_theta=1e4)
    window = config.integer("sliding_window", 1, 2**30, 4096)
    return ModelSpec(
        family="gemma3_text",
        vocab_size=config.integer("vocab_size", 1, 2**21),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size", 1, _MAX_COLUMNS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_epsilon=config.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        norm_offset=1.0,
        has_head_norms=True,
        has_sandwich_norms=True,
        activation="gelu_tanh",
        embedding_scale=hidden_size**0.5,
        is_tied=True,
        attention_scale=config.number("query_pre_attn_scalar", 1e-3, 1e6, 256) ** -0.5,
        max_positions=config.integer("max_position_embeddings", 1, 2**30, 131072),
        layers=tuple(
            LayerSpec(window, sliding) if kind == "sliding_attention" else LayerSpec(None, full)
            for kind in _layer_kinds(config)
        ),
    )


def _read_llama(config: ConfigReader) -> ModelSpec:
    """Llama 1 to 3 and what was made after their pattern. Defaults are those of LlamaConfig in transformers 4.57.6."""
    if config.value("architectures") not in (None, ["LlamaForCausalLM"]):
        raise config.unknown("architectures")
    config.expect("hidden_act", ("silu",), "silu")
    config.expect("attention_bias", (False,), False)
    config.expect("mlp_bias", (False,), False)
    config.expect("pretraining_tp", (1,), 1)  # more would only cut the same products into parts
    config.expect("rope_interleaved", (False,), False)
    config.expect("is_llama_config", (True,), True)
    hidden_size = config.integer("hidden_size", 1, _MAX_COLUMNS)
    heads = config.integer("num_attention_heads", 1, 256)
    # Derived as transformers does; an uneven quotient then fails by the shape of the tensors.
    heads, kv_heads, head_dim = _heads(config, kv_default=heads, dim_default=hidden_size // heads)
    layer = LayerSpec(None, read_rope(config, theta=1e4))
    return ModelSpec(
        family="llama",
        vocab_size=config.integer("vocab_size", 1, 2**21),
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size", 1, _MAX_COLUMNS),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_epsilon=config.number("rms_norm_eps", 0.0, 1.0, 1e-6),
        norm_offset=0.0,
        has_head_norms=False,
        has_sandwich_norms=False,
        activation="silu",
        embedding_scale=1.0,
        is_tied=config.flag("tie_word_embeddings", default=False),
        attention_scale=head_dim**-0.5,
        max_positions=config.integer("max_position_embeddings", 1, 2**30, 2048),
        layers=(layer,) * config.integer("num_hidden_layers", 1, 256),
    )


def _heads(config: ConfigReader, *, kv_default: int | None, dim_default: int | None) -> tuple[int, int, int]:
    """(query heads, key/value heads, head_dim)."""
    heads = config.integer("num_attention_heads", 1, 256)
    kv_heads = config.integer("num_key_value_heads", 1, 256, kv_default)
    head_dim = config.integer("head_dim", 16, 512, dim_default)
    if heads % kv_heads or head_dim % 16 or heads * head_dim > _MAX_COLUMNS:
        raise ModelError(
            f"config.json: {heads} heads of {head_dim} with {kv_heads} key/value heads is impossible",
            advice="export the model again",
        )
    return heads, kv_heads, head_dim


def _layer_kinds(config: ConfigReader) -> list[str]:
    count = config.integer("num_hidden_layers", 1, 256)
    pattern = config.integer("sliding_window_pattern", 1, 256, config.integer("_sliding_window_pattern", 1, 256, 6))
    kinds = config.value("layer_types")
    if kinds is None:
        return ["full_attention" if (index + 1) % pattern == 0 else "sliding_attention" for index in range(count)]
    if not isinstance(kinds, list) or len(kinds) != count:
        raise ModelError(f"config.json: layer_types does not name {count} layers", advice="export the model again")
    if any(kind not in KINDS for kind in kinds):
        raise config.unknown("layer_types")
    return kinds


FAMILIES: dict[str, Callable[[ConfigReader], ModelSpec]] = {"gemma3_text": _read_gemma3_text, "llama": _read_llama}
"""config.json's model_type -> reader of a family whose logits were compared with transformers' (tests/goldens)."""
AWAITED = {"qwen2": "biases of q, k and v", "qwen3": "a golden of its own"}
"""Families that are known and refused until they are compared, and what they need."""
