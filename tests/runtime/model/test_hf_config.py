"""A model folder is described exactly or refused by name; nothing that changes the mathematics is guessed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kensho.base.errors import ModelError, UnknownArchitecture
from kensho.base.structs import replace
from kensho.runtime.model.hf_config import check_tensors, parse_config, read_model
from kensho.runtime.model.model_spec import LayerSpec, ModelSpec, expected_tensors
from kensho.runtime.model.rope import Rope
from kensho.runtime.model.safetensors import Tensor

CONFIG: dict[str, object] = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 16,
    "max_position_embeddings": 256,
    "query_pre_attn_scalar": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "dtype": "bfloat16",
    "eos_token_id": [1, 106],
}
FULL, SLIDING = LayerSpec(None, Rope(1e6)), LayerSpec(16, Rope(1e4))


def _parse(**changes: object) -> ModelSpec:
    config = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    return parse_config(json.dumps(config).encode())


def _tensors(spec: ModelSpec) -> dict[str, Tensor]:
    return {
        name: Tensor(name, "BF16", shape, "model.safetensors", 0, 0) for name, shape in expected_tensors(spec).items()
    }


def test_a_known_config_is_read_as_transformers_reads_it() -> None:
    spec = _parse()
    assert spec.attention_scale == 64**-0.5
    assert spec.embedding_scale == 48**0.5
    assert spec.norm_offset == 1.0
    assert spec.layers == (SLIDING,) * 5 + (FULL, SLIDING)  # without layer_types every 6th is global
    assert spec.kv_bytes_per_position == 2 * 4 * 32 * 7


@pytest.mark.parametrize("key", ["sliding_window_pattern", "_sliding_window_pattern"])
def test_a_pattern_or_a_list_says_which_layers_are_global(key: str) -> None:
    assert _parse(**{key: 3}).layers == (SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING)
    kinds = ["full_attention"] + ["sliding_attention"] * 6
    assert _parse(layer_types=kinds).layers == (FULL,) + (SLIDING,) * 6


def test_absent_settings_have_the_defaults_of_the_family() -> None:
    absent = (
        "head_dim",
        "rms_norm_eps",
        "query_pre_attn_scalar",
        "rope_theta",
        "rope_local_base_freq",
        "architectures",
    )
    spec = _parse(**dict.fromkeys(absent, ...), num_attention_heads=1)
    assert (spec.head_dim, spec.norm_epsilon, spec.attention_scale) == (256, 1e-6, 1 / 16)
    assert spec.layers == _parse().layers


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model_type", "qwen2"),
        ("model_type", "qwen3"),
        ("model_type", "mamba"),
        ("model_type", None),
        ("model_type", ["gemma3_text"]),
        ("architectures", ["Gemma3ForSequenceClassification"]),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("use_bidirectional_attention", True),
        ("attention_bias", True),
        ("hidden_activation", "relu"),
        ("tie_word_embeddings", False),
        ("quantization_config", {"quant_method": "gptq"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"type": "dynamic", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "linear", "factor": 4.0, "beta_fast": 32}),
        ("rope_parameters", {"full_attention": {"rope_type": "llama3", "rope_theta": 1e6}}),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e6}, "third_attention": {"rope_theta": 5}}),
        ("layer_types", ["chunked_attention"] * 7),
        ("a_setting_of_next_year", 0.5),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(UnknownArchitecture) as caught:
        _parse(**{setting: value})
    assert caught.value.advice
    named = str(caught.value)
    assert setting in named or any(str(part) in named for part in value), named  # type: ignore[union-attr]


def test_an_unknown_setting_that_is_off_does_not_matter() -> None:
    assert _parse(final_logit_softcapping=None, new_switch=False, pruned_heads={}, new_list=[]) == _parse()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("hidden_size", 0),
        ("hidden_size", 10**9),
        ("hidden_size", "48"),
        ("hidden_size", 48.0),
        ("hidden_size", ...),
        ("vocab_size", True),
        ("num_key_value_heads", 3),
        ("head_dim", 40),
        ("head_dim", 10**400),
        ("rms_norm_eps", "tiny"),
        ("rope_theta", 0.0),
        ("rope_theta", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_scaling", [1]),
        ("layer_types", ["full_attention"]),
        ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}),
    ],
)
def test_an_impossible_setting_is_a_model_error_with_advice(setting: str, value: object) -> None:
    with pytest.raises(ModelError) as caught:
        _parse(**{setting: value})
    assert caught.value.advice


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"{", b"[" * 200_000, b'{"model_type": "gemma3_text"}'])
def test_what_is_no_config_is_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        parse_config(data)


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([1]) | st.just({})


@given(changes=st.dictionaries(st.sampled_from([*CONFIG, "rope_scaling", "rope_parameters", "layer_types"]), _VALUES))
def test_no_config_crashes_the_reader(changes: dict[str, object]) -> None:
    try:
        spec = _parse(**changes)
    except ModelError:
        return
    assert len(expected_tensors(spec)) == 2 + 13 * len(spec.layers)


def test_every_tensor_must_be_there_with_its_shape_and_a_readable_type() -> None:
    spec = _parse()
    tensors = _tensors(spec)
    name = "model.layers.3.mlp.up_proj.weight"
    check_tensors(spec, tensors)
    with pytest.raises(ModelError, match=r"layers\.3\.mlp\.up_proj\.weight is missing"):
        check_tensors(spec, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ModelError, match=r"has shape \[48, 96\]"):
        check_tensors(spec, tensors | {name: replace(tensors[name], shape=(48, 96))})
    with pytest.raises(UnknownArchitecture, match="F8_E4M3"):
        check_tensors(spec, tensors | {name: replace(tensors[name], dtype="F8_E4M3")})


def test_a_tensor_left_over_is_refused_but_a_repeated_tied_head_is_not() -> None:
    spec = _parse()
    extra = Tensor("model.layers.0.self_attn.q_proj.bias", "BF16", (64,), "model.safetensors", 0, 0)
    with pytest.raises(UnknownArchitecture, match="bias has no place"):
        check_tensors(spec, _tensors(spec) | {extra.name: extra})
    check_tensors(spec, _tensors(spec) | {"lm_head.weight": replace(extra, name="lm_head.weight")})


def test_a_real_folder_is_read(tiny_model: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = read_model(tiny_model, lambda done, total: seen.append((done, total)))
    assert model.spec == parse_config((tiny_model / "config.json").read_bytes())
    assert seen[0] == (0, 28) and seen[-1] == (28, 28)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="is not a model folder"):
        read_model(tmp_path)
    with pytest.raises(ModelError, match="is not a model folder"):
        read_model(tmp_path / "nowhere")
    with pytest.raises(ModelError):
        read_model(tiny_model / "config.json")


def test_a_truncated_model_is_refused(edited_model: Callable[..., Path]) -> None:
    folder = edited_model()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="truncated: 100 bytes"):
        read_model(folder)


def test_the_schema_hash_follows_the_architecture() -> None:
    assert _parse().digest == _parse(eos_token_id=3).digest != _parse(sliding_window=17).digest
