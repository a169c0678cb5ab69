"""A machine's disk, a compiler that does as it is told, and loaders on both."""

import asyncio
from collections.abc import Callable
from itertools import count
from pathlib import Path

from kensho.base.events import Event, GraphMissed
from kensho.base.ids import digest_of
from kensho.runtime.cache.graph_cache import GraphCache
from kensho.runtime.cache.graph_maker import GraphCompiler
from kensho.runtime.cache.header import GraphHeader
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.cache.loader import ModelLoader
from kensho.runtime.compiling.compile_job import CompileJob
from kensho.runtime.system.machine import Machine
from kensho.testing.clock import VirtualClock

MACHINE = Machine("x86_64", "linux", ("avx2",), "1.31.1")
DIGESTS = {
    "config.json": digest_of(b"c"),
    "tokenizer.json": digest_of(b"t"),
    "model.safetensors": digest_of(b"m"),
}


class Scripted:
    """A compiler that writes any bytes with a fitting header, or fails as told."""

    def __init__(self, write: Callable[..., GraphHeader]) -> None:
        self._write = write
        self.jobs: list[CompileJob] = []
        self.errors: list[Exception | None] = []
        self.after: Callable[[Path], object] = lambda _: None

    async def compile(self, job: CompileJob, on_stage: object = None) -> None:
        self.jobs.append(job)
        await asyncio.sleep(0)
        error = self.errors.pop(0) if self.errors else None
        if error:
            (Path(job.out_folder) / "half").write_bytes(b"x")
            raise error
        if job.key is None:
            (Path(job.out_folder) / "graph.onnx").write_bytes(b"raw")
        else:
            self._write(Path(job.out_folder), job.model, key=job.key)
        self.after(Path(job.out_folder))


class World:
    """One machine's disk, and as many loaders on it as there would be processes."""

    def __init__(self, root: Path, write: Callable[..., GraphHeader]) -> None:
        self.root = root
        self.graphs = root / "graphs"
        self.scratch = root / "scratch"
        self.events: list[Event] = []
        self.compiler = Scripted(write)
        self.clock = VirtualClock()
        self.boot = "first boot"
        self._numbers = count()

    def token(self) -> str:
        return f"t{next(self._numbers)}"

    def cache(self, limit_bytes: int = 1 << 30) -> GraphCache:
        return GraphCache(
            self.graphs,
            limit_bytes=limit_bytes,
            boot=self.boot,
            clock=self.clock,
            token=self.token,
            emit=self.events.append,
        )

    def loader(
        self, compiler: GraphCompiler | None = None, machine: Machine = MACHINE, limit_bytes: int = 1 << 30
    ) -> ModelLoader:
        return ModelLoader(
            cache=self.cache(limit_bytes),
            compiler=compiler or self.compiler,
            scratch=self.scratch,
            token=self.token,
            machine=machine,
            clock=self.clock,
            emit=self.events.append,
            max_context=2048,
            threads=1,
        )

    def load(self, loader: ModelLoader, model: str = "m", tier: str = "mapped") -> LoadedGraph:
        digests = {**DIGESTS, "model.safetensors": digest_of(model.encode())}
        return asyncio.run(loader.load(model, "1", self.root / "model", digests, tier=tier))  # type: ignore[arg-type]

    def find(self, loader: ModelLoader) -> LoadedGraph | None:
        return asyncio.run(loader.find("m", "1", self.root / "model", DIGESTS, tier="mapped"))

    def names(self) -> list[type[Event]]:
        """What was said, but for why a graph had to be made."""
        return [type(event) for event in self.events if not isinstance(event, GraphMissed)]
