"""A program that answers with a model through an engine's cache of compiled models, for bench/runtime_failures.py.

    python serve.py ENGINE FOLDER [--twice]

FOLDER has the model as the engine takes it (`model/`) and the cache (`cache/`). It prints JSON: whether the cache had
the compiled model, and an answer. With --twice it then waits for a line and answers again. Each engine is used as its
documentation shows: Kensho by its loader and an engine host, OpenVINO with CACHE_DIR, JAX with its persistent cache,
ONNX Runtime by loading the optimised model that an earlier run saved.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

IDS = [5, 77, 1301, 4000, 12, 9]


def onnxruntime_saved(folder: Path) -> tuple[bool, Any]:
    import onnxruntime

    saved = folder / "cache" / "model.onnx"
    is_hit = saved.exists()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if is_hit:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(saved)
        for name, value in (("file_name", "model.data"), ("min_size_in_bytes", "1024")):
            options.add_session_config_entry(f"session.optimized_model_external_initializers_{name}", value)
    source = saved if is_hit else folder / "model" / "model.onnx"
    session = onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    def answer() -> list[float]:
        feeds = {
            "input_ids": np.array([IDS], np.int64),
            "last_position": np.array([len(IDS) - 1], np.int32),
            "total_length": np.array([len(IDS)], np.int32),
        }
        for value in session.get_inputs():
            if value.name.startswith("past."):
                feeds[value.name] = np.zeros([1, value.shape[1], 16, value.shape[3]], np.float32)
        return [float(logit) for logit in session.run(["logits"], feeds)[0].ravel()]

    return is_hit, answer


def openvino_cached(folder: Path) -> tuple[bool, Any]:
    import openvino

    core = openvino.Core()
    core.set_property({"CACHE_DIR": str(folder / "cache")})
    compiled = core.compile_model(str(folder / "model" / "model.xml"), "CPU", {"INFERENCE_NUM_THREADS": 1})

    def answer() -> list[float]:
        request = compiled.create_infer_request()
        feeds = {
            "input_ids": np.array([IDS], np.int64),
            "positions": np.arange(len(IDS), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return [float(logit) for logit in request.infer(feeds)[compiled.output(0)].ravel()]

    return bool(compiled.get_property("LOADED_FROM_CACHE")), answer


def jax_cached(folder: Path) -> tuple[bool, Any]:
    import jax
    import jax.numpy as jnp

    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with np.load(folder / "model" / "weights.npz") as arrays:
        weights = [arrays[name] for name in sorted(arrays)]

    @jax.jit
    def model(x: Any, weights: Any) -> Any:
        for weight in weights:
            x = jnp.tanh(x @ weight) + x
        return x

    first = np.asarray(model(np.ones((1, 64), np.float32), weights))
    return bool(hits), lambda: [float(value) for value in first.ravel()]


def kensho(folder: Path) -> tuple[bool, Any]:
    from secrets import token_hex

    from kensho.base.clock import SystemClock
    from kensho.base.errors import EngineError
    from kensho.base.ids import digest_of
    from kensho.base.inference import Sampling
    from kensho.runtime.cache.graph_cache import GraphCache
    from kensho.runtime.cache.loader import ModelLoader
    from kensho.runtime.compiling.compiler import Compiler
    from kensho.runtime.hosts.host import EngineHost
    from kensho.runtime.system.machine import read_machine

    clock = SystemClock()
    model = folder / "model"
    loader = ModelLoader(
        cache=GraphCache(
            folder / "cache",
            limit_bytes=1 << 30,
            boot=Path("/proc/sys/kernel/random/boot_id").read_text(),
            clock=clock,
            token=lambda: token_hex(4),
            emit=lambda _: None,
        ),
        compiler=Compiler(env={}, stall_s=60, emit=lambda _: None),
        scratch=folder.with_name(folder.name + ".scratch"),
        token=lambda: token_hex(4),
        machine=read_machine(),
        clock=clock,
        emit=lambda _: None,
        max_context=256,
        threads=1,
    )
    # In the product these digests come from the signed manifest; who replaces the weights publishes new ones.
    digests = {file.name: digest_of(file.read_bytes()) for file in model.iterdir()}
    loop = asyncio.new_event_loop()

    def load() -> tuple[Any, Any]:
        graph = loop.run_until_complete(loader.load("m", "1", model, digests, tier="mapped"))
        host = EngineHost(
            "primary", graph, clock=clock, emit=lambda _: None, env={}, threads=1, max_context=64, start_s=30,
            inactivity_s=20,
        )  # fmt: skip
        loop.run_until_complete(host.start())
        return graph, host

    async def tokens(host: Any) -> list[float]:
        return [float(token) async for token in host.generate(tuple(IDS), (), Sampling(max_tokens=8))]

    graph, host = load()

    def answer() -> list[float]:
        nonlocal graph, host
        try:
            return loop.run_until_complete(tokens(host))
        except EngineError as error:
            # As the scheduler does: the request goes to another engine, on a graph that was looked at again.
            print(f"an engine was lost: {error.message}", file=sys.stderr)
            loop.run_until_complete(loader.invalidate(graph, "the engine was lost"))
            graph, host = load()
            return loop.run_until_complete(tokens(host))

    return graph.source == "disk", answer


ENGINES = {
    "kensho": kensho,
    "onnxruntime, saved": onnxruntime_saved,
    "openvino, cached": openvino_cached,
    "jax, cached": jax_cached,
}

if __name__ == "__main__":
    is_hit, answer = ENGINES[sys.argv[1]](Path(sys.argv[2]))
    first = answer()
    if "--twice" in sys.argv:
        print("ready", flush=True)
        sys.stdin.readline()
        first = answer()
    print(json.dumps({"hit": is_hit, "answer": first}), flush=True)
    os._exit(0)  # whatever an engine does at its end is no part of this
