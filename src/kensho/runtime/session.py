"""One model in memory: token ids in, logits of the last position out, KV cache in buffers of our own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tier = Literal["raw", "mapped", "mixed", "packed"]


class Session:
    """An ONNX Runtime session and its KV cache. Not thread-safe; one sequence at a time."""

    position: int
    max_context: int
    vocab_size: int

    @classmethod
    def load(
        cls, graph_folder: Path, model_folder: Path, *, tier: Tier, max_context: int | None, threads: int
    ) -> "Session":
        raise NotImplementedError

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]:
        raise NotImplementedError

    def rewind(self, position: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
