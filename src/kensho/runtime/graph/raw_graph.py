"""The graph of the raw tier: exact, made in 0.1 s, its weights where they lie in the delivered safetensors.

It answers while the compile runs. Apart from `stages`, so that whoever only makes this need not import an engine:
a first answer waits for it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kensho.runtime.cache.header import DEFAULT_MAX_POSITIONS, GRAPH_FILE
from kensho.runtime.compiling.artefact import storage_errors
from kensho.runtime.graph.decoder import Op, link
from kensho.runtime.graph.graph_builder import build_graph, rope_constants
from kensho.runtime.graph.graph_raw import RawLowering
from kensho.runtime.model.hf_config import Model, read_model
from kensho.runtime.model.tensor_reader import TensorReader


def build_raw(model_folder: Path, out_folder: Path, *, max_positions: int = DEFAULT_MAX_POSITIONS) -> None:
    """Write the exact graph as graph.onnx (8 MB for 270M, most of it rope tables) into the existing `out_folder`.

    Its weights stay in the model folder's safetensors, which must be plain files there (ONNX Runtime refuses
    symbolic links that leave the folder). About 0.1 s. Raises ModelError, StorageError.
    """
    model = read_model(model_folder)
    positions = min(max_positions, model.spec.max_positions)
    graph = raw_graph(model, link(model.spec), rope_constants(model.spec, positions), positions)
    with storage_errors(out_folder, len(graph)):
        (out_folder / GRAPH_FILE).write_bytes(graph)  # it does not outlive the program: no fsync


def raw_graph(model: Model, linked: list[Op], ropes: Mapping[str, NDArray[np.float32]], max_positions: int) -> bytes:
    """The same in memory, of a model that was read and linked."""
    with TensorReader(model.folder) as reader:
        return build_graph(model.spec, linked, RawLowering(model, reader, ropes), max_positions)
