"""The operations of a decoder: laid out once, fused without changing what is computed, placed without overlap."""

import json
from itertools import pairwise

import pytest

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
    fuse,
    link,
)
from kensho.runtime.graph.graph_ops import INLINE_BYTES
from kensho.runtime.graph.weights_layout import PAGE_BYTES, plan_layout
from kensho.runtime.model.hf_config import Model, parse_config
from kensho.runtime.model.model_spec import ModelSpec, expected_tensors
from kensho.runtime.model.safetensors import Tensor

SIZES = {
    "vocab_size": 20_000,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}
FAMILIES = {
    "gemma3_text": {"model_type": "gemma3_text"},
    "llama": {"model_type": "llama"},
    "tied llama": {"model_type": "llama", "tie_word_embeddings": True},
}


@pytest.fixture(params=FAMILIES)
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    return parse_config(json.dumps(SIZES | FAMILIES[request.param]).encode())


@pytest.fixture
def model(spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Model:
    tensors = {name: Tensor(name, "BF16", shape, "w", 0, 0) for name, shape in expected_tensors(spec).items()}
    return Model(tmp_path_factory.mktemp("model"), spec, tensors)


def _reads(op: Op) -> tuple[str, ...]:
    match op:
        case Embed():
            return (INPUT_IDS,)
        case Attention():
            return (op.query, op.key, op.value)
        case AddNorm():
            return (op.x, op.skip)
        case Gated():
            return (op.gate, op.up)
        case _:
            return (op.x,)


def _writes(op: Op) -> tuple[str, ...]:
    return op.outs if isinstance(op, Linear) else (op.out, op.total) if isinstance(op, AddNorm) else (op.out,)


def _weights(op: Op) -> tuple[str, ...]:
    match op:
        case Linear():
            return op.weights
        case Embed() | Head():
            return (op.table,)
        case Norm() | AddNorm() | HeadNorm():
            return (op.gain,)
        case _:
            return ()


@pytest.mark.parametrize("is_fused", [False, True])
def test_every_value_is_made_once_and_before_it_is_read(spec: ModelSpec, is_fused: bool) -> None:
    ops = fuse(link(spec)) if is_fused else link(spec)
    known = {INPUT_IDS}
    for op in ops:
        assert set(_reads(op)) <= known
        assert not set(_writes(op)) & known
        known |= set(_writes(op))
    assert LOGITS in known


def test_every_tensor_has_its_place_in_the_operations(spec: ModelSpec) -> None:
    used = [name for op in link(spec) for name in _weights(op)]
    assert set(used) == set(expected_tensors(spec))
    assert len(used) - len(set(used)) == int(spec.is_tied)  # the tied table is read twice


def test_fusing_joins_q_k_v_and_gate_up_and_nothing_else(spec: ModelSpec) -> None:
    linked, fused = link(spec), fuse(link(spec))
    joined = [len(op.weights) for op in fused if isinstance(op, Linear)]
    assert joined == [3, 1, 2, 1] * 3
    assert [name for op in fused for name in _writes(op)] == [name for op in linked for name in _writes(op)]
    assert [op for op in fused if not isinstance(op, Linear)] == [op for op in linked if not isinstance(op, Linear)]


def test_places_are_page_aligned_and_tile_the_file(model: Model) -> None:
    layout = plan_layout(model, fuse(link(model.spec)), {"rope.cos": INLINE_BYTES, "rope.sin": INLINE_BYTES - 1})
    places = list(layout.places.values())
    assert places[0].offset == 0
    assert all(before.end == after.offset for before, after in pairwise(places))
    assert all(place.offset % PAGE_BYTES == 0 for place in places)
    assert layout.size_bytes == places[-1].end
    assert "rope.cos" in layout.places
    assert "rope.sin" not in layout.places
    assert sum(matrix.rows * matrix.columns for matrix in layout.matrices.values()) == sum(
        rows * columns for rows, columns in (s for s in expected_tensors(model.spec).values() if len(s) == 2)
    )
    table = layout.matrices["model.embed_tokens.weight"]
    assert (table.rows, table.columns) == (20_000, 48)
    assert f"{table.name}.sums" in layout.places
    assert ("lm_head.weight" in layout.matrices) != model.spec.is_tied
