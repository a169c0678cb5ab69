"""Each family is read as transformers reads it; what another member of it would do differently is refused by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kensho.base.errors import ModelError, UnknownArchitecture
from kensho.runtime.model.families import AWAITED, FAMILIES
from kensho.runtime.model.hf_config import parse_config
from kensho.runtime.model.model_spec import LayerSpec, ModelSpec, expected_tensors
from kensho.runtime.model.rope import Bands, Rope

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIG: dict[str, object] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "torch_dtype": "bfloat16",
}


def _parse(**changes: object) -> ModelSpec:
    config = {name: value for name, value in (CONFIG | changes).items() if value is not ...}
    return parse_config(json.dumps(config).encode())


def test_a_llama_is_read_as_transformers_reads_it() -> None:
    spec = _parse()
    assert spec.layers == (LayerSpec(None, Rope(5e5)),) * 2
    assert (spec.heads, spec.kv_heads, spec.head_dim, spec.attention_scale) == (3, 1, 32, 32**-0.5)
    assert (spec.norm_offset, spec.embedding_scale, spec.activation) == (0.0, 1.0, "silu")
    assert not spec.has_head_norms and not spec.has_sandwich_norms


def test_absent_settings_have_the_defaults_of_llama() -> None:
    absent = ("num_key_value_heads", "rope_theta", "rms_norm_eps", "max_position_embeddings", "hidden_act")
    spec = _parse(**dict.fromkeys(absent, ...))
    assert (spec.kv_heads, spec.norm_epsilon, spec.max_positions) == (3, 1e-6, 2048)
    assert spec.layers[0].rope == Rope(1e4)
    assert not spec.is_tied


def test_the_head_is_a_tensor_of_its_own_unless_it_is_tied() -> None:
    assert _parse().head_tensor == "lm_head.weight"
    assert expected_tensors(_parse())["lm_head.weight"] == (512, 96)
    tied = _parse(tie_word_embeddings=True)
    assert tied.head_tensor == "model.embed_tokens.weight"
    assert set(expected_tensors(_parse())) - set(expected_tensors(tied)) == {"lm_head.weight"}


def test_both_spellings_of_the_rope_of_llama_3_mean_the_same() -> None:
    expected = Rope(5e5, 8.0, Bands(1.0, 4.0, 8192))
    old = _parse(rope_scaling=LLAMA3)
    new = _parse(rope_theta=..., rope_parameters=LLAMA3 | {"rope_theta": 5e5})
    assert old == new
    assert old.layers[0].rope == expected
    assert _parse(rope_scaling={"type": "linear", "factor": 2.0}).layers[0].rope == Rope(5e5, 2.0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("architectures", ["LlamaForSequenceClassification"]),
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("pretraining_tp", 2),
        ("rope_interleaved", True),
        ("sliding_window", 512),
        ("quantization_config", {"quant_method": "awq"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0}),
        ("rope_scaling", LLAMA3 | {"attention_factor": 1.2}),
        ("rope_parameters", {"rope_type": "longrope", "factor": 4.0}),
    ],
)
def test_what_would_change_the_mathematics_is_refused_by_name(setting: str, value: object) -> None:
    with pytest.raises(UnknownArchitecture) as caught:
        _parse(**{setting: value})
    assert caught.value.advice
    named = str(caught.value)
    assert setting in named or any(str(part) in named for part in value), named  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_attention_heads", 5),
        ("num_key_value_heads", 2),
        ("head_dim", 40),
        ("num_attention_heads", ...),
        ("tie_word_embeddings", "no"),
        ("rope_scaling", {"rope_type": "llama3", "factor": 8.0}),
        ("rope_scaling", LLAMA3 | {"low_freq_factor": 4.0}),
        ("rope_scaling", LLAMA3 | {"original_max_position_embeddings": 0}),
        ("rope_parameters", {"rope_theta": 1e4}),
    ],
)
def test_an_impossible_setting_is_a_model_error_with_advice(setting: str, value: object) -> None:
    with pytest.raises(ModelError) as caught:
        _parse(**{setting: value})
    assert caught.value.advice


@pytest.mark.parametrize("family", AWAITED)
def test_a_family_that_is_not_compared_yet_is_refused_with_what_it_needs(family: str) -> None:
    assert family not in FAMILIES
    with pytest.raises(UnknownArchitecture, match=AWAITED[family]):
        _parse(model_type=family)


_VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([1]) | st.just({})


@given(changes=st.dictionaries(st.sampled_from([*CONFIG, "rope_scaling", "rope_parameters", "head_dim"]), _VALUES))
def test_no_config_crashes_the_reader(changes: dict[str, object]) -> None:
    try:
        spec = _parse(**changes)
    except ModelError:
        return
    assert len(expected_tensors(spec)) in (2 + 9 * len(spec.layers), 3 + 9 * len(spec.layers))
