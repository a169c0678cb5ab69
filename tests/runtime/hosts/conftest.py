"""Makes the modules of this folder importable for its tests; what a host must answer."""

import sys
from pathlib import Path

import numpy as np
import pytest

from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.engine.session import Session

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def undisturbed(graph: LoadedGraph) -> list[int]:
    """The greedy answer of the same session in this process."""
    from one_host import PROMPT, TOKENS

    session = Session.load(graph.graph_folder, graph.model_folder, tier="mapped", threads=1)
    ids, pending = [], list(PROMPT)
    while len(ids) < TOKENS.max_tokens:
        pending = [int(np.argmax(session.append(pending)))]
        ids += pending
    session.close()
    return ids
