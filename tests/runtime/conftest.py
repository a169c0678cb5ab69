"""A real Gemma-3 text model with random weights, made once a run, and small edits of it."""

import asyncio
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from kensho.base.clock import SystemClock
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.runtime.cache.header import GraphHeader, KeyFields, graph_key
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.compiling.compiler import Compiler
from kensho.runtime.compiling.self_test import Steps
from kensho.runtime.compiling.stages import compile_model
from kensho.runtime.graph.graph_int8 import Form
from kensho.runtime.system.machine import read_machine

MAKE_GEMMA = Path(__file__).parents[2] / "bench" / "data" / "make_gemma.py"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `make_gemma.py --size tiny` (0.7 MB). Shared: never written to."""
    folder = tmp_path_factory.mktemp("tiny-model") / "model"
    subprocess.run([sys.executable, MAKE_GEMMA, folder, "--size", "tiny"], check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def model_copy(tiny_model: Path, tmp_path: Path) -> Path:
    """The same folder to spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def llama_model(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of `tiny_llama.py` whose config.json has these values."""
    spec = importlib.util.spec_from_file_location("tiny_llama", Path(__file__).with_name("tiny_llama.py"))
    assert spec and spec.loader
    tiny_llama = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_llama)

    def make(**changes: object) -> Path:
        folder = tmp_path / f"llama-{len(list(tmp_path.iterdir()))}"
        tiny_llama.make_llama(folder, changes)
        return folder

    return make


@pytest.fixture
def edited_model(tiny_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of the tiny model whose config.json has other values; None removes a key."""

    def edit(**changes: object) -> Path:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for file in tiny_model.iterdir():
            shutil.copy(file, folder)
        config = json.loads((folder / "config.json").read_text()) | changes
        config = {name: value for name, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return edit


@pytest.fixture(scope="session")
def machine_key() -> KeyFields:
    """Key fields of this machine for a model that no test looks up by content."""
    machine = read_machine()
    return KeyFields(
        weights_digest=digest_of(b"weights"),
        config_digest=digest_of(b"config"),
        tokenizer_digest=digest_of(b"tokenizer"),
        engine_version=machine.engine_version,
        arch=machine.arch,
        system=machine.system,
        cpu_features=machine.cpu_features,
        max_positions=512,
    )


class FixedSpeed:
    """A stopwatch that shows what it is told, by the name of the form; 100 microseconds for the others."""

    def __init__(self, products: Mapping[str, int], decodes: Mapping[str, int]) -> None:
        self._products = products
        self._decodes = decodes

    def product_us(self, form: Form) -> int:
        return self._products.get(form.name, 100)

    def decode_us(self, form: Form, session: Steps) -> int:
        del session
        return self._decodes.get(form.name, 100)


@pytest.fixture(scope="session")
def fixed_speed() -> type[FixedSpeed]:
    return FixedSpeed


@pytest.fixture(scope="session")
def compiled_tiny(
    tiny_model: Path, machine_key: KeyFields, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, GraphHeader]:
    """The tiny model compiled for this machine: (folder, header). Shared: never written to."""
    folder = tmp_path_factory.mktemp("tiny-graph")
    header = compile_model(
        tiny_model,
        folder,
        key=machine_key,
        model="tiny",
        version="1",
        clock=SystemClock(),
        progress=lambda *_: None,
        speed=FixedSpeed({"s8": 1000}, {}),
    )
    return folder, header


@pytest.fixture(scope="session")
def graph(tiny_model: Path, machine_key: KeyFields, tmp_path_factory: pytest.TempPathFactory) -> LoadedGraph:
    """The tiny model compiled in a child, ready for an engine. Shared: never written to."""
    folder = tmp_path_factory.mktemp("graph")
    key = replace(machine_key, max_positions=256)
    job = CompileJob("m", "1", str(tiny_model), str(folder), key.max_positions, 1, key)
    asyncio.run(Compiler(env={}, stall_s=60, emit=lambda _: None).compile(job))
    return LoadedGraph("m", "1", graph_key(key), folder, tiny_model, "mapped", key.max_positions, "compile", 0.5)
