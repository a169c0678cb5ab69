"""From a Hugging Face folder to what the graph builder needs to know: sizes, layer kinds, tensor names and shapes.

`FAMILIES` names the architectures whose mathematics is implemented and compared with transformers; a new family is one
reader function there. Everything else, and every unknown setting, is refused by name (UnknownArchitecture): a wrong
guess would still produce fluent text. Reads config.json and the tensor tables, never the weights.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kensho.base.errors import ModelError, UnknownArchitecture
from kensho.base.ids import Digest, digest_of
from kensho.runtime.config_reader import ConfigReader
from kensho.runtime.rope import KINDS, Rope, read_ropes
from kensho.runtime.safetensors import Tensor, read_tensors

CONFIG = "config.json"
_MAX_CONFIG_BYTES = 1024 * 1024
_WEIGHT_TYPES = ("BF16", "F16", "F32")
_MAX_COLUMNS = 65536
"""A row of 65 536 products of u8 and s8 just fits the kernels' 32-bit sums."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    window: int | None
    """A token sees itself and the window - 1 tokens before it; None = all."""
    rope: Rope


@dataclass(frozen=True, slots=True)
class ModelSpec:
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
    embedding_scale: float
    attention_scale: float
    max_positions: int
    """What the model was made for; the graph serves this or less."""
    layers: tuple[LayerSpec, ...]

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
        return digest_of(json.dumps(asdict(self), sort_keys=True).encode())


@dataclass(frozen=True, slots=True)
class Model:
    """A folder that was read and found complete."""

    folder: Path
    spec: ModelSpec
    tensors: dict[str, Tensor]


def read_model(folder: Path, on_tensor: Callable[[int, int], None] | None = None) -> Model:
    """The model in `folder`, every tensor's name, shape and type checked. Raises ModelError, UnknownArchitecture.

    `on_tensor(done, total)` is called with 0 and then for each tensor checked. Costs two small reads.
    """
    spec = parse_config(_read_config(folder))
    tensors = read_tensors(folder)
    check_tensors(spec, tensors, on_tensor)
    return Model(folder, spec, tensors)


def read_model_spec(folder: Path) -> ModelSpec:
    """Only the description of the model in `folder`, with the same checks as `read_model`."""
    return read_model(folder).spec


def parse_config(data: bytes) -> ModelSpec:
    """The description in the bytes of config.json. Pure. Raises ModelError, UnknownArchitecture."""
    try:
        values = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"config.json is not valid JSON ({str(error)[:120]})", advice="export the model again"
        ) from error
    if not isinstance(values, dict):
        raise ModelError("config.json is not a JSON object", advice="export the model again")
    config = ConfigReader(values)
    family = config.value("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnknownArchitecture(
            f"model_type {str(family)[:80]!r} is not implemented",
            advice=f"Kensho runs {', '.join(FAMILIES)}; it refuses rather than guess",
            setting="model_type",
        )
    spec = FAMILIES[family](config)
    config.refuse_unread()
    return spec


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that a model of this description has (tied head: no tensor of its own)."""
    hidden, inner, head = spec.hidden_size, spec.intermediate_size, spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (spec.vocab_size, hidden)}
    for index in range(len(spec.layers)):
        at = f"model.layers.{index}."
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            shapes[f"{at}{norm}_layernorm.weight"] = (hidden,)
        shapes[f"{at}self_attn.q_proj.weight"] = (spec.query_size, hidden)
        shapes[f"{at}self_attn.k_proj.weight"] = (spec.kv_size, hidden)
        shapes[f"{at}self_attn.v_proj.weight"] = (spec.kv_size, hidden)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, spec.query_size)
        shapes[f"{at}self_attn.q_norm.weight"] = (head,)
        shapes[f"{at}self_attn.k_norm.weight"] = (head,)
        shapes[f"{at}mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
    shapes["model.norm.weight"] = (hidden,)
    return shapes


def check_tensors(
    spec: ModelSpec, tensors: dict[str, Tensor], on_tensor: Callable[[int, int], None] | None = None
) -> None:
    """Each expected tensor is there with its shape and a type that can be read, and no tensor is left over."""
    expected = expected_tensors(spec)
    if on_tensor:
        on_tensor(0, len(expected))
    for done, (name, shape) in enumerate(expected.items(), start=1):
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelError(f"tensor {name} is missing", advice="download or export the model again", tensor=name)
        if tensor.shape != shape:
            raise ModelError(
                f"tensor {name} has shape {list(tensor.shape)}, config.json says {list(shape)}",
                advice="config.json and the weights belong to different models; export the model again",
                tensor=name,
            )
        if tensor.dtype not in _WEIGHT_TYPES:
            raise UnknownArchitecture(
                f"tensor {name} has type {tensor.dtype}", advice=f"export the model as {' or '.join(_WEIGHT_TYPES)}"
            )
        if on_tensor:
            on_tensor(done, len(expected))
    # A checkpoint may repeat the tied head; anything else left over (a bias, an adapter) would change the answer.
    if left := sorted(set(tensors) - set(expected) - {"lm_head.weight"}):
        raise UnknownArchitecture(
            f"tensor {left[0][:80]} has no place in a {spec.family} model",
            advice="merge adapters and export the model again",
        )


def _read_config(folder: Path) -> bytes:
    try:
        with (folder / CONFIG).open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ModelError(
            f"{folder.name or folder} is not a model folder: {CONFIG} cannot be read ({error.strerror})",
            advice="give the folder that holds config.json, model.safetensors and tokenizer.json",
        ) from error
    if len(data) > _MAX_CONFIG_BYTES:
        raise ModelError(f"{CONFIG} is longer than {_MAX_CONFIG_BYTES} bytes", advice="this is no model's config.json")
    return data


def _read_gemma3_text(config: ConfigReader) -> ModelSpec:
    """Gemma 3, text only. Defaults are those of Gemma3TextConfig in transformers 4.57.6."""
    architectures = config.value("architectures")
    if architectures not in (None, ["Gemma3ForCausalLM"]):
        raise config.unknown("architectures")
    config.expect("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    config.expect("hidden_act", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    config.expect("attention_bias", (False,), False)
    config.expect("tie_word_embeddings", (True,), True)
    heads = config.integer("num_attention_heads", 1, 256)
    kv_heads = config.integer("num_key_value_heads", 1, 256)
    head_dim = config.integer("head_dim", 16, 512, 256)
    if heads % kv_heads or head_dim % 16 or heads * head_dim > _MAX_COLUMNS:
        raise ModelError(
            f"config.json: {heads} heads of {head_dim} with {kv_heads} key/value heads is impossible",
            advice="export the model again",
        )
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
        embedding_scale=hidden_size**0.5,
        attention_scale=config.number("query_pre_attn_scalar", 1e-3, 1e6, 256) ** -0.5,
        max_positions=config.integer("max_position_embeddings", 1, 2**30, 131072),
        layers=tuple(
            LayerSpec(window, sliding) if kind == "sliding_attention" else LayerSpec(None, full)
            for kind in _layer_kinds(config)
        ),
    )


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


FAMILIES: dict[str, Callable[[ConfigReader], ModelSpec]] = {"gemma3_text": _read_gemma3_text}
"""config.json's model_type -> reader of a family whose logits were compared with transformers' (tests/goldens)."""
