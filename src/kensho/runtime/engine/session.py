"""One model in memory: token ids in, logits of the last position out. The edge to ONNX Runtime (with `integer_kernel`).

Tiers: `raw` (exact, weights in the delivered safetensors), `mapped` (int8 read straight from the map: loads in
milliseconds, little memory of its own), `packed` (the same files, weights copied into the kernels' own layout at load:
faster long prompts, one more copy in memory), `mixed` (the layers packed, the head read from the map: long prompts
nearly as fast for a third of the memory). All but raw compute the same integers.

The KV cache lies in buffers of our own that the graph reads as past and writes as present, so a step copies nothing
and forgetting is setting `position`.
"""

import mmap
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from kensho.base.errors import ConfigError, Damaged, EngineError, WrongNumbers
from kensho.base.structs import Struct
from kensho.runtime.cache.header import (
    DEFAULT_MAX_POSITIONS,
    GRAPH_FILE,
    GRAPH_SECTION,
    MIXED_SECTION,
    GraphHeader,
    read_header,
)

Tier = Literal["raw", "mapped", "mixed", "packed"]
_MAX_GRAPH_BYTES = 1024 * 1024 * 1024
ENGINE_VERSION: str = onnxruntime.__version__
SPIN_US = 20
"""How long a thread looks for its next piece of work before it sleeps. Waking it costs more than that; the default,
a millisecond and more, takes cores from the program that embeds us and collapses on a busy machine (docs/adr/0022)."""
PIECE_TOKENS = 512
"""How many tokens of a prompt go through the graph at once. Measured for 270M and a prompt of 2048, mapped: 2.0 s of
CPU and 56 MB beside the KV cache, against 2.5 s and 230 MB in one piece, with the same bits; 256: 2.15 s."""
_FATAL = 4
"""Log level: ONNX Runtime also raises what it would print."""


class GraphFacts(Struct):
    """The sizes that a graph carries as metadata."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int

    @property
    def kv_bytes_per_position(self) -> int:
        return 2 * 4 * self.layers * self.kv_heads * self.head_dim


class Session:
    """A loaded graph with one sequence's KV cache. Not thread-safe. Close it off the request path (about 10 ms).

    Memory: kv_bytes_per_position * max_context (75 MB for 270M and 2048), taken page by page as the sequence grows.
    """

    def __init__(self, engine: onnxruntime.InferenceSession, facts: GraphFacts, max_context: int) -> None:
        self.facts = facts
        self.vocab_size = facts.vocab_size
        self.max_context = max_context
        self.position = 0
        # An OrtValue made of an array uses its memory: the arrays must live as long as the binding.
        self._last_position = np.zeros(1, np.int32)
        self._total_length = np.zeros(1, np.int32)
        self._one_id = np.zeros((1, 1), np.int64)
        self._logits = np.zeros((1, facts.vocab_size), np.float32)
        self._one_id_value = _value(self._one_id)
        binding = engine.io_binding()
        self._kept = self._bind(binding)
        self._running: tuple[onnxruntime.InferenceSession, onnxruntime.IOBinding] | None = (engine, binding)

    @classmethod
    def load(
        cls, graph_folder: Path, model_folder: Path, *, tier: Tier, max_context: int | None = None, threads: int = 1
    ) -> "Session":
        """Load graph_folder/graph.onnx. `raw` takes its weights from `model_folder`, the others from `graph_folder`.

        `max_context` in tokens is at most what the graph was made for; None = that, but at most 4096. Hash the
        files first (`header.verify_graph`): ONNX Runtime does not notice changed weights. Raises EngineError (the
        graph or its weights cannot be loaded: drop the entry) and ConfigError (tier or context not possible).
        """
        try:
            # A raw graph has no header: it was built a moment ago and is never kept.
            size_bytes = None if tier == "raw" else _graph_bytes(read_header(graph_folder), tier)
            with (graph_folder / GRAPH_FILE).open("rb") as file:
                graph = file.read(_MAX_GRAPH_BYTES if size_bytes is None else size_bytes)
        except (OSError, Damaged) as error:
            raise _cannot_load(tier, error) from error
        weights_folder = model_folder if tier == "raw" else graph_folder
        return cls.open(graph, weights_folder, tier=tier, max_context=max_context, threads=threads)

    @classmethod
    def open(
        cls, graph: bytes, weights_folder: Path, *, tier: Tier, max_context: int | None = None, threads: int = 1
    ) -> "Session":
        """The same for a graph in memory, which for `mixed` is the file's two sections one after the other."""
        try:
            # ONNX Runtime's exceptions share no base class below Exception.
            engine = onnxruntime.InferenceSession(
                graph, _options(tier, weights_folder, threads), providers=["CPUExecutionProvider"]
            )
            facts = _read_facts(engine)
        except Exception as error:
            raise _cannot_load(tier, error) from error
        wanted = min(facts.max_positions, DEFAULT_MAX_POSITIONS) if max_context is None else max_context
        if not 1 <= wanted <= facts.max_positions:
            raise ConfigError(
                f"a context of {wanted} tokens is not possible with this graph",
                advice=f"choose 1 to {facts.max_positions}",
            )
        return cls(engine, facts, wanted)

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed `ids` (at least one) after what was fed before; returns the last position's logits, (vocab_size,).

        The array is the caller's. Blocks for the computation. On an error `position` is unchanged, so the step can
        be tried again. Raises EngineError, WrongNumbers (not finite), ConfigError (ids or context out of range).
        Beside the KV cache it takes memory for `PIECE_TOKENS` at a time, 56 MB for 270M.
        """
        if self._running is None:
            raise EngineError("the session is closed", advice="load the model again")
        total = self.position + len(ids)
        if not ids or min(ids) < 0 or max(ids) >= self.vocab_size:
            raise ConfigError(
                f"token ids must be from 0 to {self.vocab_size - 1}, at least one", advice="check the tokenizer"
            )
        if total > self.max_context:
            raise ConfigError(
                f"{total} tokens do not fit into the context of {self.max_context}",
                advice="shorten the prompt or load with a longer context",
            )
        for begin in range(0, len(ids), PIECE_TOKENS):
            self._step(self._running, ids[begin : begin + PIECE_TOKENS], self.position + begin)
        self.position = total
        logits: NDArray[np.float32] = self._logits[0].copy()
        return logits

    def _step(
        self, running: tuple[onnxruntime.InferenceSession, onnxruntime.IOBinding], ids: Sequence[int], begin: int
    ) -> None:
        """Run the graph for `ids` after `begin` tokens; the logits are in their buffer then."""
        engine, binding = running
        if len(ids) == 1:
            self._one_id[0, 0] = ids[0]
            new_ids = self._one_id_value
        else:
            new_ids = _value(np.array([ids], np.int64))
        total = begin + len(ids)
        self._last_position[0], self._total_length[0] = total - 1, total
        try:
            binding.bind_ortvalue_input("input_ids", new_ids)
            engine.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(f"a step failed: {_first_line(error)}", advice="restart the engine") from error
        if not np.isfinite(self._logits).all():
            raise WrongNumbers("the logits are not finite", advice="verify the model and compile it again")

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on; the prefix stays usable. Free of cost."""
        if not 0 <= position <= self.position:
            raise ConfigError(f"cannot rewind from {self.position} to {position}", advice="rewind to a past position")
        self.position = position

    def close(self) -> None:
        """Give the memory back. Afterwards `append` raises EngineError. Idempotent."""
        self._running = None
        self._kept.clear()

    def _bind(self, binding: onnxruntime.IOBinding) -> list[onnxruntime.OrtValue]:
        facts = self.facts
        caches = _empty_caches((2 * facts.layers, 1, facts.kv_heads, self.max_context, facts.head_dim))
        kept = [_value(self._last_position), _value(self._total_length), _value(self._logits)]
        binding.bind_ortvalue_input("last_position", kept[0])
        binding.bind_ortvalue_input("total_length", kept[1])
        binding.bind_ortvalue_output("logits", kept[2])
        for layer in range(facts.layers):
            for half, part in enumerate(("key", "value")):
                cache = _value(caches[2 * layer + half])
                binding.bind_ortvalue_input(f"past.{layer}.{part}", cache)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", cache)
                kept.append(cache)
        return kept


def _empty_caches(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Zeros in an anonymous map, which takes memory only where it is written.

    `np.zeros` does so only in a fresh process: once blocks of this size were freed, malloc keeps them on its heap and
    clears them by hand. Measured for 270M and 2048 tokens: 30 ms and 75 MB for every load but the first.
    """
    return np.frombuffer(mmap.mmap(-1, 4 * prod(shape)), np.float32).reshape(shape)


def _graph_bytes(header: GraphHeader, tier: Tier) -> int | None:
    """How much of graph.onnx is the graph of this tier; None = all."""
    if tier != "mixed":
        section = header.section(GRAPH_SECTION)
        return section.size_bytes if section else None
    if header.section(MIXED_SECTION) is None:
        raise ConfigError("this compiled graph has no mixed tier", advice="use mapped or packed, or compile it again")
    return None


def _options(tier: Tier, weights_folder: Path, threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    # Measured: the optimiser gains nothing on our graphs, and on the raw one it would fold the casts into copies.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # The plan of which value reuses whose memory costs 290 ms of CPU for 270M's 937 nodes (18 ms without). Values are
    # freed after their last use all the same, and of at most PIECE_TOKENS.
    options.enable_mem_reuse = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_US))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_folder))
    if tier in ("raw", "mapped"):
        options.add_session_config_entry("session.disable_prepacking", "1")
    if tier == "raw":
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return options


def _read_facts(engine: onnxruntime.InferenceSession) -> GraphFacts:
    facts = engine.get_modelmeta().custom_metadata_map
    return GraphFacts(**{name: int(facts[f"kensho.{name}"]) for name in GraphFacts.__struct_fields__})


def _value(array: NDArray[np.generic]) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _cannot_load(tier: Tier, error: Exception) -> EngineError:
    return EngineError(
        f"the {tier} graph cannot be loaded: {_first_line(error)}", advice="drop the entry and compile again"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
