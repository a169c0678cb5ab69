"""An engine's threads leave the machine to others: they burn nothing while nobody asks, and no more when it is busy.

Only CPU time is compared, never wall time: it is the same on a noisy machine. The figures beside llama.cpp, wall time
too, are those of `bench/runtime_busy.py`.
"""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from kensho.base.clock import SystemClock
from kensho.base.ids import digest_of
from kensho.runtime.cache.header import KeyFields
from kensho.runtime.compiling.stages import compile_model
from kensho.runtime.engine.session import Session
from kensho.runtime.system.machine import read_machine

pytestmark = pytest.mark.real

THREADS = 2
BUSY = 6
SIZE = {"vocab_size": 32768, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
        "max_position_embeddings": 1024, "query_pre_attn_scalar": 256}  # fmt: skip
"""Four layers of the shape of Gemma 3 270M: products that are worth a second thread."""
MAKE_GEMMA = Path(__file__).parents[3] / "bench" / "data" / "make_gemma.py"
SPEND = "import time\nwhile time.process_time() < {}: pass"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """A packed session with two threads."""
    model, graph = (tmp_path_factory.mktemp(name) for name in ("model", "graph"))
    _make_model(model)
    machine = read_machine()
    key = KeyFields(
        weights_digest=digest_of(b"weights"),
        config_digest=digest_of(b"config"),
        tokenizer_digest=digest_of(b"tokenizer"),
        engine_version=machine.engine_version,
        arch=machine.arch,
        system=machine.system,
        cpu_features=machine.cpu_features,
        max_positions=1024,
    )
    compile_model(model, graph, key=key, model="m", version="1", clock=SystemClock(), progress=lambda *_: None)
    with closing(Session.load(graph, model, tier="packed", max_context=1024, threads=THREADS)) as loaded:
        loaded.append(range(5, 69))
        yield loaded


def _make_model(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("make_gemma", MAKE_GEMMA)
    assert spec and spec.loader
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    maker.SIZES["four layers"] = SIZE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["make_gemma", str(folder), "--size", "four layers"])
        maker.main()


def test_idle_threads_burn_nothing(session: Session) -> None:
    """ONNX Runtime's default burns 30 ms after an answer, as it spins."""

    _tokens(session, 20)
    began_s = _other_threads_s()
    # As long as another process needs for 0.2 s of CPU time: on any machine long enough for a thread that spins.
    subprocess.run([sys.executable, "-c", SPEND.format(0.2)], check=True)
    assert _other_threads_s() - began_s < 0.005


def test_a_busy_machine_costs_no_cpu_time(session: Session) -> None:
    """A token among six busy processes takes at most twice the CPU time. llama.cpp: 5 to 10 times."""
    quiet_s = min(_cpu_s(lambda: _tokens(session, 10)) for _ in range(5))
    with _busy_processes():
        busy_s = min(_cpu_s(lambda: _tokens(session, 10)) for _ in range(5))
    assert busy_s < 2 * quiet_s


def _tokens(session: Session, count: int) -> None:
    session.rewind(64)
    for token in range(count):
        session.append([100 + token])


def _cpu_s(act: Callable[[], object]) -> float:
    """CPU time of this process, all threads, children not counted."""
    began_s = time.process_time()
    act()
    return time.process_time() - began_s


def _other_threads_s() -> float:
    """CPU time of this process, but for the calling thread."""
    return time.process_time() - time.thread_time()


@contextmanager
def _busy_processes() -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(BUSY):
            # Ends by itself if this process does not get to end it.
            process = subprocess.Popen([sys.executable, "-c", "print(flush=True)\n" + SPEND.format(30)], stdout=-1)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            assert process.stdout
            process.stdout.readline()
        yield
