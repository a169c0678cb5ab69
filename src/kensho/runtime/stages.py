"""Compile a model folder into a graph for this machine, in five stages that report what they really do.

| stage | what is done | unit of done/total |
|---|---|---|
| parsing | config and tensor tables are read, every tensor's name, shape and type is checked | tensors |
| linking | the layers' operations are laid out and tied to their tensors | layers |
| optimizing | q, k, v and gate, up become one matrix each, norm gains are folded, the file is laid out | operations |
| compiling | weights are quantised to int8 with their column sums and written | bytes |
| finalizing | the graph is run and compared with the exact one, every byte is hashed, files are fsynced | steps |

Runs in a child process that may be killed at any time: it writes only into `out_folder`, a fresh folder of the
caller's, which becomes visible by the caller's rename. `build_raw` needs none of this: it is the graph that answers
while the compile runs.
"""

import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kensho.base.clock import Clock
from kensho.base.errors import CompileFailed
from kensho.runtime import self_test
from kensho.runtime.artefact import (
    WeightsFile,
    count_blocks,
    fsync_folder,
    graph_section,
    storage_errors,
    write_file,
)
from kensho.runtime.decoder import AddNorm, HeadNorm, Norm, Op, fuse, link
from kensho.runtime.graph_builder import build_graph, rope_constants
from kensho.runtime.graph_int8 import FORMS, Constant, Form, Int8Lowering, make_constants
from kensho.runtime.graph_raw import RawLowering
from kensho.runtime.header import (
    DEFAULT_MAX_POSITIONS,
    GRAPH_FILE,
    HEADER_FILE,
    GraphHeader,
    KeyFields,
    SelfTestVector,
    dump_header,
)
from kensho.runtime.hf_config import Model, read_model
from kensho.runtime.integer_kernel import multiply_mapped, multiply_packed, sums_are_exact
from kensho.runtime.quantize import Scales, quantize_rows
from kensho.runtime.session import ENGINE_VERSION, Session
from kensho.runtime.tensor_reader import TensorReader
from kensho.runtime.weights_layout import Layout, plan_layout

STAGES = ("parsing", "linking", "optimizing", "compiling", "finalizing")
Progress = Callable[[str, int, int, str], None]
"""Called with stage, done, total, unit; with done = 0 and with done = total of each stage, done never falling."""


def compile_model(
    model_folder: Path,
    out_folder: Path,
    *,
    key: KeyFields,
    model: str,
    version: str,
    clock: Clock,
    progress: Progress,
    threads: int = 1,
) -> GraphHeader:
    """Write graph.onnx, weights.bin and header.json (all fsynced) for the model into the existing `out_folder`.

    `key` goes into the header as it is; its engine version must be the one that runs here. Measured for 270M on two
    busy shared cores: 1.5 to 2.5 s, 95 MB of own memory (and the mapped pages of source and result). Raises ModelError
    (the folder), NotEnoughSpace and StorageError (the disk), EngineError (the graph does not run), CompileFailed (the
    result is not good enough on this CPU: stay on the raw tier). Leaves rubbish in `out_folder` then.
    """
    started = clock.monotonic_s()
    if key.engine_version != ENGINE_VERSION:
        raise CompileFailed(
            f"the key is for ONNX Runtime {key.engine_version}, this is {ENGINE_VERSION}",
            advice="make the key again",
            stage="parsing",
        )
    parsed = read_model(model_folder, lambda done, total: progress("parsing", done, total, "tensors"))
    spec = parsed.spec
    progress("linking", 0, len(spec.layers), "layers")
    linked = link(spec, lambda done, total: progress("linking", done, total, "layers"))
    with TensorReader(model_folder) as reader:
        plan = _optimize(parsed, linked, reader, min(key.max_positions, spec.max_positions), progress)
        with (
            storage_errors(out_folder, plan.layout.size_bytes),
            WeightsFile(out_folder, plan.layout) as weights,
        ):
            scales = _quantize(parsed, plan, reader, weights, progress)
            total = 2 + count_blocks(plan.layout) + 2
            steps = _Steps(lambda done: progress("finalizing", done, total, "steps"))
            form, vector, graph = _choose_form(parsed, plan, scales, weights, out_folder, threads=threads, steps=steps)
            sections = (graph_section(graph), *weights.sections(steps.add))
            weights.flush()
            steps.add(1)
            header = GraphHeader(
                model=model,
                version=version,
                schema=spec.digest,
                key=key,
                form=form.name,
                vocab_size=spec.vocab_size,
                kv_bytes_per_position=spec.kv_bytes_per_position,
                sections=sections,
                self_test=vector,
                created=datetime.fromtimestamp(clock.wall_s(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                compile_ms=round((clock.monotonic_s() - started) * 1000),
            )
            write_file(out_folder, HEADER_FILE, dump_header(header))
            fsync_folder(out_folder)
            steps.add(1)
    return header


def build_raw(model_folder: Path, out_folder: Path, *, max_positions: int = DEFAULT_MAX_POSITIONS) -> None:
    """Write the exact graph as graph.onnx (8 MB for 270M, most of it rope tables) into the existing `out_folder`.

    Its weights stay in the model folder's safetensors, which must be plain files there (ONNX Runtime refuses
    symbolic links that leave the folder). About 0.1 s. Raises ModelError, StorageError.
    """
    model = read_model(model_folder)
    positions = min(max_positions, model.spec.max_positions)
    _write_raw(model, link(model.spec), rope_constants(model.spec, positions), out_folder, positions)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the first three stages made."""

    linked: list[Op]
    fused: list[Op]
    layout: Layout
    gains: dict[str, NDArray[np.float32]]
    ropes: dict[str, NDArray[np.float32]]
    max_positions: int


class _Steps:
    """Counts what is done and reports it, beginning with 0."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report = report
        self._done = 0
        report(0)

    def add(self, count: int) -> None:
        self._done += count
        self._report(self._done)


def _optimize(model: Model, linked: list[Op], reader: TensorReader, max_positions: int, progress: Progress) -> _Plan:
    spec = model.spec
    norms = [op.gain for op in linked if isinstance(op, Norm | AddNorm | HeadNorm)]
    total = len(linked) + len(norms)
    steps = _Steps(lambda done: progress("optimizing", done, total, "operations"))
    fused = fuse(linked, lambda: steps.add(1))
    gains = {}
    for name in norms:
        gains[name] = reader.vector(model.tensors[name]) + np.float32(spec.norm_offset)
        steps.add(1)
    ropes = rope_constants(spec, max_positions)
    layout = plan_layout(model, fused, {name: table.nbytes for name, table in ropes.items()})
    return _Plan(linked, fused, layout, gains, ropes, max_positions)


def _quantize(
    model: Model, plan: _Plan, reader: TensorReader, weights: WeightsFile, progress: Progress
) -> dict[str, Scales]:
    matrices = plan.layout.matrices.values()
    total = sum(matrix.rows * matrix.columns for matrix in matrices)
    steps = _Steps(lambda done: progress("compiling", done, total, "bytes"))
    return {
        matrix.name: quantize_rows(
            reader, tuple(model.tensors[source] for source in matrix.sources), weights.matrix(matrix), steps.add
        )
        for matrix in matrices
    }


def _choose_form(
    model: Model,
    plan: _Plan,
    scales: dict[str, Scales],
    weights: WeightsFile,
    out_folder: Path,
    *,
    threads: int,
    steps: _Steps,
) -> tuple[Form, SelfTestVector, bytes]:
    """The first form that is exact in its sums and answers like the exact graph on this CPU, with its self-test."""
    prompt = self_test.make_prompt(model.spec.vocab_size, plan.max_positions)
    context = self_test.tokens_needed(prompt)
    ids, exact = _exact_answer(model, plan, prompt, out_folder, threads)
    steps.add(1)
    failures = []
    for form in FORMS:
        if not all(sums_are_exact(form.largest, multiply) for multiply in (multiply_mapped, multiply_packed)):
            failures.append(f"{form.name}: the CPU's sums overflow")
            continue
        constants: dict[str, Constant] = {**make_constants(scales, form), **plan.ropes}
        weights.write(constants)
        lowering = Int8Lowering(plan.layout, constants, plan.gains, form)
        graph = build_graph(model.spec, plan.fused, lowering, plan.max_positions)
        write_file(out_folder, GRAPH_FILE, graph)
        with closing(
            Session.load(out_folder, model.folder, tier="mapped", max_context=context, threads=threads)
        ) as session:
            error = self_test.relative_error(self_test.follow(session, prompt, ids), exact)
            if error <= self_test.MAX_ERROR:
                vector = self_test.make_vector(prompt, *self_test.answer(session, prompt))
                steps.add(1)
                return form, vector, graph
        failures.append(f"{form.name}: relative error {error:.2f}")
    raise CompileFailed(
        f"no int8 graph answers like the exact one on this CPU ({'; '.join(failures)})",
        advice="the model still runs uncompiled",
        stage="finalizing",
    )


def _exact_answer(
    model: Model, plan: _Plan, prompt: tuple[int, ...], out_folder: Path, threads: int
) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    folder = out_folder / "raw"
    folder.mkdir()
    _write_raw(model, plan.linked, plan.ropes, folder, plan.max_positions)
    context = self_test.tokens_needed(prompt)
    with closing(Session.load(folder, model.folder, tier="raw", max_context=context, threads=threads)) as session:
        answer = self_test.answer(session, prompt)
    shutil.rmtree(folder)
    return answer


def _write_raw(
    model: Model, linked: list[Op], ropes: dict[str, NDArray[np.float32]], out_folder: Path, max_positions: int
) -> None:
    with TensorReader(model.folder) as reader:
        graph = build_graph(model.spec, linked, RawLowering(model, reader, ropes), max_positions)
    with storage_errors(out_folder, len(graph)):
        write_file(out_folder, GRAPH_FILE, graph)
