"""One model in memory: token ids in, logits of the last position out. The edge to ONNX Runtime (with `integer_kernel`).

Tiers: `raw` (exact, weights in the delivered safetensors), `mapped` (int8 read straight from the map: loads in
milliseconds, little memory of its own), `packed` (the same files, weights copied into the kernels' own layout at load:
faster long prompts, one more copy in memory), `mixed` (the layers packed, the head read from the map: long prompts
nearly as fast for a third of the memory). All but raw compute the same integers.

The KV cache lies in buffers of our own (`kv_cache`) that the graph reads as past and writes as present, so a step
copies nothing and forgetting is setting `position`. A second cache can be made and swapped in, so that a sequence which
was interrupted waits with all that was computed for it.
"""

from collections.abc import Sequence
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
from kensho.runtime.engine.kv_cache import KvCache
from kensho.runtime.system.memory import read_memory

Tier = Literal["raw", "mapped", "mixed", "packed"]
_MAX_GRAPH_BYTES = 1024 * 1024 * 1024
ENGINE_VERSION: str = onnxruntime.__version__
SPIN_US = 20
"""How long a thread looks for its next piece of work before it sleeps. Waking it costs more than that; the default,
a millisecond and more, takes cores from the program that embeds us and collapses on a busy machine (docs/adr/0022)."""
PIECE_TOKENS = 512
"""How many tokens of a prompt go through the graph at once. Measured for 270M and a prompt of 2048, mapped: 2.0 s of
CPU and 56 MB beside the KV cache, against 2.5 s and 230 MB in one piece, with the same bits; 256: 2.15 s."""
SPARE_BYTES = 128 << 20
"""What a sequence that is kept aside leaves to the rest of the machine (guess: a small program's start)."""
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


class _Bound(Struct, frozen=False, eq=False):
    """The KV cache of one sequence, bound to the engine that reads and writes it."""

    engine: onnxruntime.InferenceSession
    binding: onnxruntime.IOBinding
    cache: KvCache
    values: list[onnxruntime.OrtValue]
    """What is bound: must live as long as the binding."""
    position: int = 0


class Session:
    """A loaded graph with one sequence's KV cache, at times two. Not thread-safe. Close it off the request path (about
    10 ms).

    Memory: kv_bytes_per_position * max_context (75 MB for 270M and 2048), taken page by page as the sequence grows. A
    sequence that is kept aside has the pages of its ids, and no others.
    """

    def __init__(self, engine: onnxruntime.InferenceSession, facts: GraphFacts, max_context: int) -> None:
        """Raises MemoryError."""
        self.facts = facts
        self.vocab_size = facts.vocab_size
        self.max_context = max_context
        # An OrtValue made of an array uses its memory: the arrays must live as long as the binding.
        self._last_position = np.zeros(1, np.int32)
        self._total_length = np.zeros(1, np.int32)
        self._one_id = np.zeros((1, 1), np.int64)
        self._logits = np.zeros((1, facts.vocab_size), np.float32)
        self._one_id_value = _value(self._one_id)
        self._bound: _Bound | None = self._bind(engine)
        self._aside: _Bound | None = None

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

    @property
    def position(self) -> int:
        """How many ids have been fed and not forgotten."""
        return self._open().position

    @property
    def piece_tokens(self) -> int:
        """How many ids go through the graph at once: longer prompts take as many steps."""
        return PIECE_TOKENS

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Feed `ids` (at least one) after what was fed before; returns the last position's logits, (vocab_size,).

        The array is the caller's. Blocks for the computation. On an error `position` is unchanged, so the step can
        be tried again. Raises EngineError, WrongNumbers (not finite), ConfigError (ids or context out of range).
        Beside the KV cache it takes memory for `PIECE_TOKENS` at a time, 56 MB for 270M.
        """
        bound = self._open()
        total = bound.position + len(ids)
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
            self._step(bound, ids[begin : begin + PIECE_TOKENS], bound.position + begin)
        bound.position = total
        logits: NDArray[np.float32] = self._logits[0].copy()
        return logits

    def _open(self) -> _Bound:
        if self._bound is None:
            raise EngineError("the session is closed", advice="load the model again")
        return self._bound

    def _step(self, bound: _Bound, ids: Sequence[int], begin: int) -> None:
        """Run the graph for `ids` after `begin` tokens; the logits are in their buffer then."""
        if len(ids) == 1:
            self._one_id[0, 0] = ids[0]
            new_ids = self._one_id_value
        else:
            new_ids = _value(np.array([ids], np.int64))
        total = begin + len(ids)
        self._last_position[0], self._total_length[0] = total - 1, total
        try:
            bound.binding.bind_ortvalue_input("input_ids", new_ids)
            bound.engine.run_with_iobinding(bound.binding)
        except Exception as error:
            raise EngineError(f"a step failed: {_first_line(error)}", advice="restart the engine") from error
        if not np.isfinite(self._logits).all():
            raise WrongNumbers("the logits are not finite", advice="verify the model and compile it again")

    def rewind(self, position: int) -> None:
        """Forget everything from `position` on; the prefix stays usable. Free of cost."""
        bound = self._open()
        if not 0 <= position <= bound.position:
            raise ConfigError(f"cannot rewind from {bound.position} to {position}", advice="rewind to a past position")
        bound.position = position

    def branch(self, position: int) -> None:
        """Keep the sequence aside and go on in a second one, which begins with a copy of its first `position` ids.

        One that was aside before is given back. Costs 0.4 ms for 270M, and 15 us for each id that is copied. Raises
        MemoryError, and everything is as it was, but for what was aside.
        """
        first = self._open()
        if not 0 <= position <= first.position:
            raise ConfigError(f"cannot branch at {position} of {first.position}", advice="branch at a past position")
        self._aside = None
        second = self._bind(first.engine)
        second.cache.copy_from(first.cache, position)
        second.position = position
        first.cache.trim(first.position)
        self._bound, self._aside = second, first

    def swap(self) -> None:
        """Go on in the sequence that is aside, and keep this one aside. Costs 0.05 ms for 270M."""
        first, second = self._open(), self._aside
        if second is None:
            raise ConfigError("no sequence is kept aside", advice="branch first")
        first.cache.trim(first.position)
        self._bound, self._aside = second, first

    def give_back(self) -> None:
        """Drop the sequence that is aside; its memory is the machine's again. Idempotent."""
        self._aside = None

    def has_memory(self, positions: int) -> bool:
        """Whether so many positions more than one whole context may be taken on this machine now (0.5 ms)."""
        return read_memory() >= positions * self.facts.kv_bytes_per_position + SPARE_BYTES

    def close(self) -> None:
        """Give the memory back. Afterwards all else raises EngineError. Idempotent."""
        self._bound = self._aside = None

    def _bind(self, engine: onnxruntime.InferenceSession) -> _Bound:
        """A new sequence."""
        facts, binding = self.facts, engine.io_binding()
        cache = KvCache(facts.layers, facts.kv_heads, self.max_context, facts.head_dim)
        values = [_value(self._last_position), _value(self._total_length), _value(self._logits)]
        binding.bind_ortvalue_input("last_position", values[0])
        binding.bind_ortvalue_input("total_length", values[1])
        binding.bind_ortvalue_output("logits", values[2])
        for layer in range(facts.layers):
            for half, part in enumerate(("key", "value")):
                value = _value(cache.array[2 * layer + half])
                binding.bind_ortvalue_input(f"past.{layer}.{part}", value)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", value)
                values.append(value)
        return _Bound(engine, binding, cache, values)


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
