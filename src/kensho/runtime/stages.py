"""Compile a model folder into a graph for this machine, in five stages that report what they really do.

| stage | what is done | unit of done/total |
|---|---|---|
| parsing | config and tensor tables are read, every tensor's name, shape and type is checked | tensors |
| linking | the layers' operations are laid out and tied to their tensors | layers |
| optimizing | q, k, v and gate, up become one matrix each, norm gains are folded, the file is laid out | operations |
| compiling | weights are quantised to int8 and written, the graph after them | bytes |
| finalizing | files are hashed and fsynced, the graph is run and compared with the exact one | steps |

Runs in a child process that may be killed at any time: it writes only into `out_folder`, a fresh folder of the
caller's, which becomes visible by the caller's rename.
"""

from collections.abc import Callable
from pathlib import Path

from kensho.base.clock import Clock
from kensho.runtime.header import GraphHeader, KeyFields

STAGES = ("parsing", "linking", "optimizing", "compiling", "finalizing")
Progress = Callable[[str, int, int, str], None]
"""Called with stage, done, total, unit; at least with done = 0 and done = total of each stage, done never falling."""


def compile_model(
    model_folder: Path,
    out_folder: Path,
    *,
    key: KeyFields,
    model: str,
    version: str,
    clock: Clock,
    progress: Progress,
    threads: int = 1,
) -> GraphHeader:
    """Write graph.onnx, weights.bin and header.json (all fsynced) for the model into the existing `out_folder`."""
    raise NotImplementedError


def build_raw(model_folder: Path, out_folder: Path) -> None:
    """Write the exact graph, whose weights stay where they are in the model's safetensors, as graph.onnx."""
    raise NotImplementedError
