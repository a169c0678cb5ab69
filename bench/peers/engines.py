"""Kensho and its peers behind one small interface, each used as its own documentation says is fast. Edge of the bench.

Imports are late: each engine lives in a process of its own, under the interpreter that has it. Token ids in, the last
position's logits out; a context of 2048 tokens; greedy choice is the caller's.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CONTEXT = 2048
Logits = NDArray[np.float32]


class Engine(Protocol):
    """`load` after `close` loads anew; `close` gives everything back."""

    def load(self, threads: int) -> None: ...

    def feed(self, ids: Sequence[int]) -> Logits: ...

    def forget(self) -> None: ...

    def close(self) -> None: ...


class Kensho:
    """A tier, as an engine host loads it: threads do not spin."""

    def __init__(self, work: Path, tier: str) -> None:
        import kensho.runtime.engine.session as module

        self._module: Any = module
        self._folder = work / ("raw" if tier == "raw" else "graph")
        self._model, self._tier = work / "270m", tier

    def load(self, threads: int) -> None:
        self._session = self._module.Session.load(
            self._folder, self._model, tier=self._tier, max_context=CONTEXT, threads=threads
        )

    def feed(self, ids: Sequence[int]) -> Logits:
        logits: Logits = self._session.append(ids)
        return logits

    def forget(self) -> None:
        self._session.rewind(0)

    def close(self) -> None:
        self._session.close()
        del self._session


class BareOnnxRuntime:
    """The usual dynamic int8 graph with the default options, from its file: prepacked, optimised, threads spin.

    The bindings of the KV cache are Kensho's: copying it at each step would only make the peer slower.
    """

    def __init__(self, work: Path, name: str = "model") -> None:
        import onnxruntime

        import kensho.runtime.engine.session as module

        self._module: Any = module
        self._onnxruntime: Any = onnxruntime
        self._file = work / "onnx" / f"{name}.onnx"

    def load(self, threads: int) -> None:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        engine = self._onnxruntime.InferenceSession(str(self._file), options, providers=["CPUExecutionProvider"])
        self._session = self._module.Session(engine, self._module._read_facts(engine), CONTEXT)

    feed, forget, close = Kensho.feed, Kensho.forget, Kensho.close


class LlamaCpp:
    """llama.cpp by its C interface (llama-cpp-python's binding): weights mapped, one batch of up to 512 tokens."""

    def __init__(self, work: Path, name: str = "model") -> None:
        import llama_cpp

        self._api: Any = llama_cpp
        self._file = work / f"{name}-q8_0.gguf"
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

    def load(self, threads: int) -> None:
        api = self._api
        self._model = api.llama_model_load_from_file(str(self._file).encode(), api.llama_model_default_params())
        params = api.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, 512, 512
        params.n_threads = params.n_threads_batch = threads
        self._context = api.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot load {self._file}")
        self._vocab_size = 262144

    def feed(self, ids: Sequence[int]) -> Logits:
        tokens = (self._api.llama_token * len(ids))(*ids)
        status = self._api.llama_decode(self._context, self._api.llama_batch_get_one(tokens, len(ids)))
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        found = self._api.llama_get_logits_ith(self._context, -1)
        logits: Logits = np.ctypeslib.as_array(found, (self._vocab_size,)).copy()
        return logits

    def forget(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def close(self) -> None:
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


class OpenVino:
    """The stateful int8 IR, compiled through the cache folder: the first load of all fills it."""

    def __init__(self, work: Path, cache: str = "cache") -> None:
        import openvino

        self._folder = work / "openvino"
        self._core = openvino.Core()
        self._core.set_property({"CACHE_DIR": str(self._folder / cache)})

    def load(self, threads: int) -> None:
        hints = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._compiled = self._core.compile_model(str(self._folder / "model.xml"), "CPU", hints)
        self._request = self._compiled.create_infer_request()
        self._position = 0

    def feed(self, ids: Sequence[int]) -> Logits:
        end = self._position + len(ids)
        found = self._request.infer(
            {
                "input_ids": np.array([ids], np.int64),
                "positions": np.arange(self._position, end, dtype=np.int64)[None],
                "beam_idx": np.zeros(1, np.int32),
            },
            share_inputs=True,
            share_outputs=True,
        )
        self._position = end
        logits: Logits = found[self._compiled.output(0)][0, -1].copy()
        return logits

    def forget(self) -> None:
        self._request.reset_state()
        self._position = 0

    def close(self) -> None:
        del self._request, self._compiled


NAMES = (
    "kensho mapped",
    "kensho mixed",
    "kensho packed",
    "kensho raw",
    "llama.cpp q8_0",
    "llama.cpp q8_0, no vocabulary",
    "openvino int8, cached",
    "onnxruntime int8, bare",
)


def make_engine(name: str, work: Path) -> Engine:
    """An engine, not loaded. Raises ImportError where this interpreter does not have it."""
    if name.startswith("kensho "):
        return Kensho(work, name.removeprefix("kensho "))
    match name:
        case "llama.cpp q8_0":
            return LlamaCpp(work)
        case "llama.cpp q8_0, no vocabulary":
            return LlamaCpp(work, "bare")
        case "openvino int8, cached":
            return OpenVino(work)
        case "onnxruntime int8, bare":
            return BareOnnxRuntime(work)
    raise ValueError(name)


def files_of(name: str, work: Path) -> list[Path]:
    """What the engine reads when it loads: to be dropped from the page cache for a cold start."""
    match name.split(maxsplit=1)[0]:
        case "kensho":
            own = work / ("raw" if name.endswith("raw") else "graph")
            weights = [work / "270m" / "model.safetensors"] if name.endswith("raw") else [own / "weights.bin"]
            return [own / "graph.onnx", *weights, *own.glob("header.json")]
        case "llama.cpp":
            return [work / ("bare-q8_0.gguf" if "no vocab" in name else "model-q8_0.gguf")]
        case "openvino":
            folder = work / "openvino"
            return [folder / "model.xml", folder / "model.bin", *(folder / "cache").rglob("*.*")]
        case _:
            return [Path(entry) for entry in os.scandir(work / "onnx") if entry.is_file()]
