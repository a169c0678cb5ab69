"""int8 says what a trained model says: perplexity on held-out text within 1 % of float32's (bench/runtime_truth.py)."""

import importlib.util
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import pytest

from kensho.testing.perplexity import compare

pytestmark = pytest.mark.real
BENCH = Path(__file__).parents[3] / "bench" / "runtime_truth.py"
EVERY = 4
"""Of the held-out conversations every fourth: 3 000 predictions in 3 s. The benchmark takes them all."""


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_runtime_truth", BENCH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_int8_is_not_surprised_by_held_out_text_more_than_1_percent_above_float32(
    bench: ModuleType, tmp_path: Path
) -> None:
    texts = bench.held_out_texts()
    assert len(texts["both"]) >= 100
    with ExitStack() as closing:
        sessions = dict(bench.sessions(tmp_path))
        for session in sessions.values():
            closing.callback(session.close)
        for kind in ("answers", "both"):
            found = compare(sessions["raw"], sessions["mapped"], texts[kind][::EVERY])
            assert found.tokens > 1000
            assert found.excess <= 0.01, (kind, found)
            assert found.agreement >= 0.98, (kind, found)
