"""Compile a model folder into a graph for this machine, in five stages that report what they really do.

| stage | what is done | unit of done/total |
|---|---|---|
| parsing | config and tensor tables are read, every tensor's name, shape and type is checked | tensors |
| linking | the layers' operations are laid out and tied to their tensors | layers |
| optimizing | q, k, v and gate, up become one matrix each, norm gains are folded, the file is laid out | operations |
| compiling | weights are quantised to int8 with their column sums and written | bytes |
| finalizing | graphs are run, compared with the exact one and timed, every byte is hashed and fsynced | steps |

Runs in a child process that may be killed at any time: it writes only into `out_folder`, a fresh folder of the
caller's, which becomes visible by the caller's rename. What answers while the compile runs is made by `raw_graph`.
"""

from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from time import process_time

import numpy as np
from numpy.typing import NDArray

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import CompileFailed, EngineError
from kensho.base.structs import Struct
from kensho.runtime.cache.header import (
    GRAPH_FILE,
    HEADER_FILE,
    FormSpeed,
    GraphHeader,
    KeyFields,
    Section,
    dump_header,
)
from kensho.runtime.compiling import self_test
from kensho.runtime.compiling.artefact import (
    WeightsFile,
    count_blocks,
    fsync_folder,
    graph_sections,
    storage_errors,
    write_file,
)
from kensho.runtime.compiling.form_choice import Candidate, MeasuredSpeed, Speed, find_form
from kensho.runtime.engine.session import ENGINE_VERSION, Session
from kensho.runtime.graph.decoder import AddNorm, HeadNorm, Norm, Op, fuse, link
from kensho.runtime.graph.graph_builder import build_graph, rope_constants
from kensho.runtime.graph.graph_int8 import FORMS, Constant, Form, Int8Lowering, make_constants
from kensho.runtime.graph.quantize import Scales, quantize_rows
from kensho.runtime.graph.raw_graph import raw_graph
from kensho.runtime.graph.weights_layout import Layout, plan_layout
from kensho.runtime.model.hf_config import Model, read_model
from kensho.runtime.model.tensor_reader import TensorReader

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
    speed: Speed | None = None,
) -> GraphHeader:
    """Write graph.onnx, weights.bin and header.json (all fsynced) for the model into the existing `out_folder`.

    `key` goes into the header as it is; its engine version must be the one that runs here. `speed` is the stopwatch
    that decides between correct forms; None = the real one. Measured for 270M on two
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
            total = 2 + count_blocks(plan.layout) + 3
            steps = _Steps(lambda done: progress("finalizing", done, total, "steps"))
            trial = _Trial(parsed, plan, scales, weights, out_folder=out_folder, threads=threads)
            steps.add(1)
            chosen, speeds = trial.find_form(speed or MeasuredSpeed(_ProcessorTime()))
            steps.add(1)
            sections = (*trial.write_graph(chosen), *weights.sections(steps.add))
            weights.flush()
            steps.add(1)
            header = GraphHeader(
                model=model,
                version=version,
                schema=spec.digest,
                key=key,
                form=chosen.form.name,
                vocab_size=spec.vocab_size,
                kv_bytes_per_position=spec.kv_bytes_per_position,
                sections=sections,
                self_test=chosen.vector,
                speeds=speeds,
                created=datetime.fromtimestamp(clock.wall_s(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                compile_ms=round((clock.monotonic_s() - started) * 1000),
            )
            write_file(out_folder, HEADER_FILE, dump_header(header))
            fsync_folder(out_folder)
            steps.add(1)
            _test_result(parsed, out_folder, header, threads)
            steps.add(1)
    return header


def _test_result(model: Model, folder: Path, header: GraphHeader, threads: int) -> None:
    """Load what was written as every program will, and ask it the self-test's question: the trials ran on graphs in
    memory, and another form's constants may have lain in the file meanwhile. 0.1 s for 270M."""
    context = self_test.tokens_needed(header.self_test.prompt_ids)
    try:
        with closing(
            Session.load(folder, model.folder, tier="mapped", max_context=context, threads=threads)
        ) as session:
            self_test.check_session(session, header.self_test)
    except EngineError as error:
        raise CompileFailed(
            f"the finished graph does not answer as it did when it was tried: {error.message}",
            advice="look at this machine's memory and disk; it is tried again",
            stage="finalizing",
        ) from error


class _ProcessorTime:
    """A clock of what this process took from the processors: other programs, and being stopped in the middle (a compile
    on a guess is), must not decide which form is the fastest."""

    def monotonic_s(self) -> Seconds:
        return process_time()


class _Plan(Struct):
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
    scales = {}
    for matrix in matrices:
        sources = tuple(model.tensors[source] for source in matrix.sources)
        scales[matrix.name] = quantize_rows(reader, sources, weights.matrix(matrix), steps.add)
        weights.seal(matrix, scales[matrix.name].sums)
    return scales


class _Trial:
    """Graphs of one compile, each run on this CPU and compared with the exact graph, whose answer is made first."""

    def __init__(
        self,
        model: Model,
        plan: _Plan,
        scales: dict[str, Scales],
        weights: WeightsFile,
        *,
        out_folder: Path,
        threads: int,
    ) -> None:
        self._model = model
        self._plan = plan
        self._scales = scales
        self._weights = weights
        self._out_folder = out_folder
        self._threads = threads
        self._prompt = self_test.make_prompt(model.spec.vocab_size, plan.max_positions)
        self._context = self_test.tokens_needed(self._prompt)
        raw = raw_graph(model, plan.linked, plan.ropes, plan.max_positions)
        with closing(Session.open(raw, model.folder, tier="raw", max_context=self._context, threads=threads)) as exact:
            self._ids, self._exact = self_test.answer(exact, self._prompt)

    def find_form(self, speed: Speed) -> tuple[Candidate, tuple[FormSpeed, ...]]:
        return find_form(FORMS, lambda form: self._try_form(form, speed), speed)

    def write_graph(self, chosen: Candidate) -> tuple[Section, Section]:
        """The files as the form needs them: another may have been tried after it."""
        lowering = self._lower(chosen.form)
        mixed = lowering.head_as_input(self._model.spec.head_tensor)
        write_file(self._out_folder, GRAPH_FILE, chosen.graph + mixed)
        return graph_sections(chosen.graph, mixed)

    def _try_form(self, form: Form, speed: Speed) -> Candidate | str:
        spec, plan = self._model.spec, self._plan
        graph = build_graph(spec, plan.fused, self._lower(form), plan.max_positions)
        with closing(
            Session.open(graph, self._out_folder, tier="mapped", max_context=self._context, threads=self._threads)
        ) as session:
            error = self_test.relative_error(self_test.follow(session, self._prompt, self._ids), self._exact)
            if not error <= self_test.MAX_ERROR:
                return f"relative error {error:.2f}"
            vector = self_test.make_vector(self._prompt, *self_test.answer(session, self._prompt))
            return Candidate(form, graph, vector, speed.decode_us(form, session))

    def _lower(self, form: Form) -> Int8Lowering:
        """The form's constants are in weights.bin from now on."""
        constants: dict[str, Constant] = {**make_constants(self._scales, form), **self._plan.ropes}
        self._weights.write(constants)
        return Int8Lowering(self._plan.layout, constants, self._plan.gains, form)
