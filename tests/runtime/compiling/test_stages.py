"""Compiling: five honest stages, an artefact that verifies, and one clear error for what cannot be compiled."""

import json
import struct
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import CompileFailed, Damaged, ModelError
from kensho.base.structs import replace
from kensho.runtime.cache.graph_hashing import verify_graph
from kensho.runtime.cache.header import FormSpeed, GraphHeader, KeyFields, read_header
from kensho.runtime.compiling import form_choice, self_test, stages
from kensho.runtime.compiling.form_choice import Speed
from kensho.runtime.compiling.stages import STAGES, compile_model
from kensho.runtime.engine.session import Session
from kensho.runtime.graph.raw_graph import build_raw
from kensho.runtime.model.safetensors import read_tensors
from kensho.runtime.model.tensor_reader import TensorReader

pytestmark = pytest.mark.real


def multiply_without_vnni(activations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What `vpmaddubsw` computes: pairs of products, their sum cut off at 16 bits."""
    products = activations[:, :, None].astype(np.int32) * weights[None, :, :].astype(np.int32)
    return np.clip(products[:, 0::2] + products[:, 1::2], -32768, 32767).sum(axis=1)


@pytest.fixture
def compile_into(
    machine_key: KeyFields, tmp_path: Path, fixed_speed: Callable[..., Speed]
) -> Callable[..., tuple[Path, list[tuple[str, int, int, str]]]]:
    def run(model: Path, key: KeyFields = machine_key, **decodes: int) -> tuple[Path, list[tuple[str, int, int, str]]]:
        out, seen = tmp_path / f"graph-{len(list(tmp_path.iterdir()))}", []
        out.mkdir()
        products = {} if decodes else {"s8": 1000}
        compile_model(
            model,
            out,
            key=key,
            model="m",
            version="1",
            clock=SystemClock(),
            progress=lambda *report: seen.append(report),
            speed=fixed_speed(products, decodes),
        )
        return out, seen

    return run


def test_every_stage_reports_its_own_work_from_nothing_to_all_of_it(tiny_model: Path, compile_into: Callable) -> None:
    _, seen = compile_into(tiny_model)
    assert list(dict.fromkeys(stage for stage, *_ in seen)) == list(STAGES)
    units = {}
    for stage in STAGES:
        reports = [(done, total, unit) for name, done, total, unit in seen if name == stage]
        assert reports[0][0] == 0 < reports[0][1] == reports[-1][0] == reports[-1][1]
        assert all(before[0] <= after[0] for before, after in pairwise(reports))
        units[stage] = (reports[-1][1], reports[-1][2])
    assert units["parsing"] == (28, "tensors")
    assert units["linking"] == (2, "layers")
    assert units["compiling"] == (336_576 - 704, "bytes")  # one byte for each weight but the norms'


def test_the_artefact_is_complete_verified_and_has_no_litter(tiny_model: Path, compile_into: Callable) -> None:
    out, _ = compile_into(tiny_model)
    assert sorted(file.name for file in out.iterdir()) == ["graph.onnx", "header.json", "weights.bin"]
    header = read_header(out)
    verify_graph(out, header)
    assert header.size_bytes == sum((out / name).stat().st_size for name in ("graph.onnx", "weights.bin"))
    assert header.kv_bytes_per_position == 2 * 2 * 32 * 4


def test_the_same_model_compiles_to_the_same_bytes(
    tiny_model: Path, compiled_tiny: tuple[Path, GraphHeader], compile_into: Callable
) -> None:
    out, _ = compile_into(tiny_model)
    assert read_header(out).sections == compiled_tiny[1].sections
    assert read_header(out).self_test == compiled_tiny[1].self_test


def test_a_flipped_bit_of_the_weights_is_found(tiny_model: Path, compile_into: Callable) -> None:
    out, _ = compile_into(tiny_model)
    with (out / "weights.bin").open("r+b") as file:
        file.seek(123_456)
        byte = file.read(1)[0]
        file.seek(123_456)
        file.write(bytes([byte ^ 16]))
    with pytest.raises(Damaged, match="section"):
        verify_graph(out, read_header(out))


def test_a_form_that_answers_too_far_is_not_chosen(
    tiny_model: Path, compile_into: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    u8, _, u7 = stages.FORMS
    wrong = replace(u8, zero=20)  # negative activations are cut off
    monkeypatch.setattr(stages, "FORMS", (wrong, u7))
    out, seen = compile_into(tiny_model)
    header = read_header(out)
    assert header.form == "u7"
    verify_graph(out, header)
    assert seen[-1][1] == seen[-1][2]


def test_a_cpu_whose_sums_overflow_gets_the_form_with_smaller_numbers(
    tiny_model: Path, compile_into: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form_choice, "multiply_mapped", multiply_without_vnni)
    out, _ = compile_into(tiny_model)
    assert read_header(out).form == "u7"


def test_the_faster_of_two_fine_forms_is_chosen_and_both_times_are_recorded(
    tiny_model: Path, compile_into: Callable
) -> None:
    slow, _ = compile_into(tiny_model, u8=300, s8=200)
    header = read_header(slow)
    assert header.form == "s8"
    assert header.speeds == (FormSpeed("u8", 300), FormSpeed("s8", 200))
    # The constants of the form that was tried last must not stay: u8 is tried first, and chosen.
    fast, _ = compile_into(tiny_model, u8=200, s8=300)
    assert read_header(fast).form == "u8"
    for folder in (slow, fast):
        verify_graph(folder, read_header(folder))
        with closing(Session.load(folder, tiny_model, tier="mapped", max_context=32)) as session:
            self_test.check_session(session, read_header(folder).self_test)


@pytest.mark.parametrize("at", [0, 131_072, 262_200, 300_000])
def test_a_writer_that_spoils_a_weight_before_it_is_hashed_is_caught(
    at: int, tiny_model: Path, compile_into: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hashes of such an entry would all be right."""
    real = stages.quantize_rows
    starts: dict[str, int] = {}

    def spoiled(reader: TensorReader, sources: tuple, target: np.ndarray, on_bytes: Callable) -> object:
        begin = sum(starts.values())
        scales = real(reader, sources, target, on_bytes)
        starts[sources[0].name] = target.size
        if begin <= at < begin + target.size:
            target.reshape(-1)[at - begin] ^= 2
        return scales

    monkeypatch.setattr(stages, "quantize_rows", spoiled)
    with pytest.raises(CompileFailed, match=r"is not what was computed"):
        compile_into(tiny_model)


def test_a_result_that_answers_otherwise_than_its_trial_is_caught(
    tiny_model: Path, compile_into: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stages.self_test.make_vector

    def other(prompt: tuple, ids: tuple, logits: np.ndarray) -> object:
        return real(prompt, ids, logits + 10 * np.sin(np.arange(logits.shape[1], dtype=np.float32)))

    monkeypatch.setattr(stages.self_test, "make_vector", other)
    with pytest.raises(CompileFailed, match=r"does not answer as it did when it was tried"):
        compile_into(tiny_model)


def test_the_real_stopwatch_measures(tiny_model: Path, machine_key: KeyFields, tmp_path: Path) -> None:
    header = compile_model(
        tiny_model,
        tmp_path,
        key=machine_key,
        model="m",
        version="1",
        clock=SystemClock(),
        progress=lambda *_: None,
    )
    assert header.form in {speed.form for speed in header.speeds}
    assert all(1 <= speed.decode_us < 1_000_000 for speed in header.speeds)


def test_no_form_good_enough_is_one_clear_error(
    tiny_model: Path, compile_into: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "MAX_ERROR", 0.0)
    with pytest.raises(CompileFailed, match="answers like the exact one"):
        compile_into(tiny_model)


def _rewrite(model: Path, dtype: str) -> None:
    """The weights of `model` as `dtype` in two shards, at odd offsets, with an index."""
    tensors = read_tensors(model)
    names: dict[str, str] = {}
    parts: dict[str, dict[str, np.ndarray]] = {"one.safetensors": {}, "two.safetensors": {}}
    with TensorReader(model) as reader:
        for index, (name, tensor) in enumerate(tensors.items()):
            shard = "one.safetensors" if index % 3 else "two.safetensors"
            parts[shard][name] = reader.vector(tensor).astype({"F32": np.float32, "F16": np.float16}[dtype])
            names[name] = shard
    for shard, arrays in parts.items():
        table, data = {}, b""
        for name, array in arrays.items():
            table[name] = {
                "dtype": dtype,
                "shape": list(array.shape),
                "data_offsets": [len(data), len(data) + array.nbytes],
            }
            data += array.tobytes()
        header = json.dumps(table).encode()
        (model / shard).write_bytes(struct.pack("<Q", len(header)) + header + data)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize("dtype", ["F32", "F16"])
def test_other_types_and_shards_give_the_same_logits(
    dtype: str, tiny_model: Path, edited_model: Callable[..., Path], compile_into: Callable, tmp_path: Path
) -> None:
    model = edited_model()
    _rewrite(model, dtype)
    logits = []
    for index, folder in enumerate((tiny_model, model)):
        raw = tmp_path / f"raw-{index}"
        raw.mkdir()
        build_raw(folder, raw)
        with closing(Session.load(raw, folder, tier="raw", max_context=32, threads=1)) as session:
            logits.append(session.append(list(range(5, 25))))
    # A random bf16 weight may be too small for float16's exponent: that much may differ.
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-4)
    out, _ = compile_into(model)
    verify_graph(out, read_header(out))


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_weight_that_is_not_finite_is_refused_by_its_tensors_name(
    name: str, llama_model: Callable[..., Path], compile_into: Callable
) -> None:
    model = llama_model()
    tensor = read_tensors(model)[name]
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[tensor.offset + 6 : tensor.offset + 8] = b"\x80\xff"  # bf16: minus infinity
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match=name) as caught:
        compile_into(model)
    assert "again" in caught.value.advice


def test_a_broken_norm_is_refused_by_the_raw_tier_too(llama_model: Callable[..., Path], tmp_path: Path) -> None:
    model, out = llama_model(), tmp_path / "raw"
    out.mkdir()
    tensor = read_tensors(model)["model.layers.0.input_layernorm.weight"]
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[tensor.offset : tensor.offset + 2] = b"\xc0\x7f"
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelError, match="input_layernorm"):
        build_raw(model, out)
    assert not list(out.iterdir())


@pytest.mark.parametrize("damage", ["missing", "shape", "truncated", "config", "family"])
def test_a_bad_folder_is_one_sentence_with_advice_before_anything_is_written(
    damage: str, llama_model: Callable[..., Path], compile_into: Callable, tmp_path: Path
) -> None:
    model = llama_model()
    config = json.loads((model / "config.json").read_text())
    weights = (model / "model.safetensors").read_bytes()
    if damage == "missing":
        weights = weights.replace(b"model.norm.weight", b"model.norm.waight")
    elif damage == "truncated":
        weights = weights[:-10]
    config |= {
        "shape": {"intermediate_size": 128},
        "config": {"a_setting_of_next_year": 1},
        "family": {"model_type": "mamba"},
    }.get(damage, {})
    (model / "model.safetensors").write_bytes(weights)
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        compile_into(model)
    assert caught.value.advice and "\n" not in caught.value.message
    assert [list(out.iterdir()) for out in tmp_path.glob("graph-*")] == [[]]
