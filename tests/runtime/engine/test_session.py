"""A session on a real graph: tiers agree, the cache is reused, and every misuse or damage is one clear error."""

import hashlib
import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import ConfigError, EngineError, WrongNumbers
from kensho.base.structs import as_dict, replace
from kensho.runtime.cache.graph_hashing import verify_graph
from kensho.runtime.cache.header import GRAPH_SECTION, MIXED_SECTION, GraphHeader, KeyFields, read_header
from kensho.runtime.compiling.form_choice import Speed
from kensho.runtime.compiling.self_test import check_session, relative_error
from kensho.runtime.compiling.stages import compile_model
from kensho.runtime.engine.kv_cache import KvCache
from kensho.runtime.engine.session import SPARE_BYTES, Session, Tier
from kensho.runtime.graph.raw_graph import build_raw
from kensho.runtime.model.safetensors import read_tensors

pytestmark = pytest.mark.real
IDS = np.random.default_rng(3).integers(0, 4096, 40).tolist()
BF16_NAN = b"\xc0\x7f"
Compiled = tuple[Path, GraphHeader]


def _load(graph: Path, model: Path, tier: Tier = "mapped", **options: int) -> Session:
    return Session.load(graph, model, tier=tier, max_context=options.get("max_context"), threads=1)


def _logits(session: Session) -> np.ndarray:
    return np.stack([session.append(IDS[:30]), *(session.append([token]) for token in IDS[30:])])


def test_int8_agrees_with_the_exact_graph_and_its_tiers_with_each_other(
    compiled_tiny: Compiled, raw_graph: Path, tiny_model: Path
) -> None:
    exact = _logits(_load(raw_graph, tiny_model, "raw"))
    mapped = _logits(_load(compiled_tiny[0], tiny_model))
    packed = _logits(_load(compiled_tiny[0], tiny_model, "packed"))
    mixed = _logits(_load(compiled_tiny[0], tiny_model, "mixed"))
    assert relative_error(mapped, exact) < 0.06  # measured 0.03
    np.testing.assert_allclose(packed, mapped, rtol=0, atol=1e-4)  # measured 0: integer sums are exact
    np.testing.assert_allclose(mixed, mapped, rtol=0, atol=1e-4)


def test_the_answer_does_not_depend_on_how_the_prompt_was_cut(compiled_tiny: Compiled, tiny_model: Path) -> None:
    session = _load(compiled_tiny[0], tiny_model)
    whole = session.append(IDS)
    for cut in (1, 13, 39):
        session.rewind(0)
        session.append(IDS[:cut])
        np.testing.assert_allclose(session.append(IDS[cut:]), whole, rtol=0, atol=0.02 * float(whole.std()))


@pytest.mark.parametrize("tier", ["raw", "mapped", "packed"])
def test_a_long_prompt_goes_in_pieces_and_gives_the_same_logits(
    tier: Tier, compiled_tiny: Compiled, raw_graph: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _load(raw_graph if tier == "raw" else compiled_tiny[0], tiny_model, tier)
    whole = session.append(IDS)
    session.rewind(0)
    cuts = [session.append(IDS[begin : begin + 16]) for begin in (0, 16, 32)]
    monkeypatch.setattr("kensho.runtime.engine.session.PIECE_TOKENS", 16)
    session.rewind(0)
    pieces = session.append(IDS)
    assert session.position == 40
    assert (pieces == cuts[-1]).all()
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=0.02 * float(whole.std()))


def test_a_prompt_whose_second_piece_fails_can_be_tried_again(
    raw_graph: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _load(raw_graph, tiny_model, "raw")
    session.append(IDS[:3])
    expected = session.append(IDS[3:])
    session.rewind(3)
    monkeypatch.setattr("kensho.runtime.engine.session.PIECE_TOKENS", 16)
    with monkeypatch.context() as patch:
        checks = iter([True, False])
        patch.setattr(np, "isfinite", lambda _: np.array(next(checks)))
        with pytest.raises(WrongNumbers):
            session.append(IDS[3:])
    assert session.position == 3
    np.testing.assert_allclose(session.append(IDS[3:]), expected, rtol=0, atol=1e-5)


def test_rewinding_keeps_the_prefix(compiled_tiny: Compiled, tiny_model: Path) -> None:
    session = _load(compiled_tiny[0], tiny_model)
    expected = session.append(IDS)
    assert session.position == 40
    session.rewind(25)
    np.testing.assert_allclose(session.append(IDS[25:]), expected, rtol=0, atol=0.02 * float(expected.std()))
    with pytest.raises(ConfigError):
        session.rewind(41)


def test_the_recorded_self_test_passes_in_every_compiled_tier(compiled_tiny: Compiled, tiny_model: Path) -> None:
    folder, header = compiled_tiny
    for tier in ("mapped", "mixed", "packed"):
        check_session(_load(folder, tiny_model, tier), header.self_test)


def test_the_returned_logits_stay_the_callers(compiled_tiny: Compiled, tiny_model: Path) -> None:
    session = _load(compiled_tiny[0], tiny_model)
    first = session.append(IDS[:3])
    copy = first.copy()
    session.append(IDS[3:6])
    assert (first == copy).all()
    session.close()
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.append([1])


def test_the_context_can_be_filled_and_not_exceeded(compiled_tiny: Compiled, tiny_model: Path) -> None:
    session = _load(compiled_tiny[0], tiny_model, max_context=40)
    session.append(IDS)
    with pytest.raises(ConfigError, match="41 tokens do not fit into the context of 40"):
        session.append([1])
    assert session.position == 40
    assert _load(compiled_tiny[0], tiny_model).max_context == 512  # what the graph was made for
    for context in (0, 513):
        with pytest.raises(ConfigError, match="choose 1 to 512"):
            _load(compiled_tiny[0], tiny_model, max_context=context)


@pytest.mark.parametrize("ids", [[], [-1], [4096], [1, 2, 10**12]])
def test_ids_outside_the_vocabulary_are_refused_before_the_engine_sees_them(
    ids: list[int], compiled_tiny: Compiled, tiny_model: Path
) -> None:
    session = _load(compiled_tiny[0], tiny_model)
    with pytest.raises(ConfigError, match="from 0 to 4095"):
        session.append(ids)
    assert session.position == 0


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("vocab_size", [1024, 20_000])
def test_the_tiers_agree_whatever_the_head(
    vocab_size: int,
    is_tied: bool,
    llama_model: Callable[..., Path],
    machine_key: KeyFields,
    fixed_speed: Callable[..., Speed],
    tmp_path: Path,
) -> None:
    """20 000 tokens: the raw head is cut into slices, scales and sums are too large to be inline in the graph."""
    model = llama_model(vocab_size=vocab_size, tie_word_embeddings=is_tied)
    raw, graph = tmp_path / "raw", tmp_path / "compiled"
    raw.mkdir()
    graph.mkdir()
    build_raw(model, raw)
    compile_model(
        model,
        graph,
        key=machine_key,
        model="m",
        version="1",
        clock=SystemClock(),
        progress=lambda *_: None,
        speed=fixed_speed({"s8": 1000}, {}),
    )
    ids = [token * 7 % vocab_size for token in IDS]
    exact = _load(raw, model, "raw").append(ids)
    tiers: tuple[Tier, ...] = ("mapped", "mixed", "packed")
    mapped, mixed, packed = (_load(graph, model, tier).append(ids) for tier in tiers)
    assert relative_error(mapped[None], exact[None]) < 0.15  # measured 0.07: large random weights
    np.testing.assert_allclose(mixed, mapped, rtol=0, atol=1e-4)
    np.testing.assert_allclose(packed, mapped, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tier", ["mapped", "packed"])
def test_a_token_whose_embedding_is_zero_stays_zero(
    tier: Tier,
    llama_model: Callable[..., Path],
    machine_key: KeyFields,
    fixed_speed: Callable[..., Speed],
    tmp_path: Path,
) -> None:
    """The steps of its row are 0, its integers anything. Without biases a llama makes zeros of zeros."""
    model, graph = llama_model(), tmp_path / "compiled"
    table = read_tensors(model)["model.embed_tokens.weight"]
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[table.offset : table.offset + 128] = bytes(128)  # the row of token 0
    (model / "model.safetensors").write_bytes(weights)
    graph.mkdir()
    compile_model(
        model,
        graph,
        key=machine_key,
        model="m",
        version="1",
        clock=SystemClock(),
        progress=lambda *_: None,
        speed=fixed_speed({"s8": 1000}, {}),
    )
    session = _load(graph, model, tier)
    assert (session.append([0]) == 0).all()
    assert (session.append([0, 0]) == 0).all()
    assert np.abs(session.append([0, 9])).max() > 0.1


def test_mixed_packs_the_layers_and_not_the_head(compiled_tiny: Compiled, tiny_model: Path) -> None:
    """By what ONNX Runtime itself says: the head's matrix is no constant there, so it cannot be prepacked."""
    graph = (compiled_tiny[0] / "graph.onnx").read_bytes()
    section = compiled_tiny[1].section(GRAPH_SECTION)
    assert section is not None
    overridable = []
    for data in (graph, graph[: section.size_bytes]):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(compiled_tiny[0]))
        engine = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        overridable.append([value.name for value in engine.get_overridable_initializers()])
    assert overridable == [["model.embed_tokens.weight"], []]


def test_a_graph_of_an_older_minor_version_runs_but_has_no_mixed_tier(
    compiled_tiny: Compiled, tiny_model: Path, tmp_path: Path
) -> None:
    folder, header = tmp_path / "older", compiled_tiny[1]
    shutil.copytree(compiled_tiny[0], folder)
    graph = header.section(GRAPH_SECTION)
    assert graph is not None
    (folder / "graph.onnx").write_bytes((folder / "graph.onnx").read_bytes()[: graph.size_bytes])
    sections = tuple(section for section in header.sections if section.name != MIXED_SECTION)
    body = as_dict(replace(header, sections=sections, format=(1, 0)))
    del body["speeds"]
    dump = partial(json.dumps, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(dump(body).encode()).hexdigest()
    (folder / "header.json").write_text(dump({"body": body, "sha256": digest}))
    verify_graph(folder, read_header(folder))
    check_session(_load(folder, tiny_model), header.self_test)
    with pytest.raises(ConfigError, match="no mixed tier"):
        _load(folder, tiny_model, "mixed")


@pytest.mark.parametrize("damage", ["no folder", "no weights", "short weights", "garbage graph", "empty graph"])
def test_what_cannot_be_loaded_is_an_engine_error(
    damage: str, compiled_tiny: Compiled, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "graph"
    if damage != "no folder":
        shutil.copytree(compiled_tiny[0], folder)
    if damage == "no weights":
        (folder / "weights.bin").unlink()
    elif damage == "short weights":
        data = (folder / "weights.bin").read_bytes()
        (folder / "weights.bin").write_bytes(data[: len(data) // 2])
    elif damage == "garbage graph":
        (folder / "graph.onnx").write_bytes(b"\x08\x07nonsense")
    elif damage == "empty graph":
        (folder / "graph.onnx").write_bytes(b"")
    with pytest.raises(EngineError, match="the mapped graph cannot be loaded") as caught:
        _load(folder, tiny_model)
    assert caught.value.advice


def test_logits_that_are_not_finite_are_never_returned(
    compiled_tiny: Compiled, tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    table = read_tensors(model)["model.embed_tokens.weight"]
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[table.offset : table.offset + 2] = BF16_NAN  # the raw graph reads matrices where they lie, unlooked at
    (model / "model.safetensors").write_bytes(weights)
    graph = tmp_path / "graph"
    graph.mkdir()
    build_raw(model, graph)
    session = _load(graph, model, "raw")
    with pytest.raises(WrongNumbers, match="not finite"):
        session.append(IDS)
    assert session.position == 0


def test_loading_needs_no_package_that_only_the_compiler_needs() -> None:
    code = "import sys, kensho.runtime.engine.session, kensho.runtime.compiling.self_test; print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert "'onnxruntime'" in modules
    for absent in ("'onnx'", "'msgspec'", "'tuf'", "'jinja2'", "'urllib3'", "'tokenizers'"):
        assert absent not in modules


# --- a second sequence ---


def test_a_second_sequence_begins_with_a_copy_and_changes_nothing_in_the_first(
    compiled_tiny: Compiled, tiny_model: Path, caches: weakref.WeakSet[KvCache]
) -> None:
    session = _load(compiled_tiny[0], tiny_model)
    session.append(IDS[:30])
    expected = session.append(IDS[30:31])
    session.rewind(30)
    session.branch(20)
    assert (session.position, len(caches)) == (20, 2)
    session.append(IDS[:20])
    session.swap()
    assert session.position == 30
    assert (session.append(IDS[30:31]) == expected).all()
    session.swap()
    assert session.position == 40
    session.branch(40)  # the one that was aside is given back
    assert len(caches) == 2
    session.give_back()
    session.give_back()
    assert (session.position, len(caches)) == (40, 1)
    with pytest.raises(ConfigError, match="no sequence is kept aside"):
        session.swap()
    with pytest.raises(ConfigError, match="cannot branch at 41 of 40"):
        session.branch(41)
    session.branch(0)
    session.close()
    assert len(caches) == 0
    with pytest.raises(EngineError, match="closed"):
        session.branch(0)


def test_what_the_machine_has_left_decides_whether_more_than_a_context_is_taken(
    compiled_tiny: Compiled, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _load(compiled_tiny[0], tiny_model)
    needed = 400 * session.facts.kv_bytes_per_position + SPARE_BYTES
    for left, expected in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr("kensho.runtime.engine.session.read_memory", lambda left=left: left)
        assert session.has_memory(400) is expected
