"""The application (prototype: `Kernel`): joins delivery, runtime, resilience and telemetry, and nothing else does.

    async with Kensho(settings, clock=SystemClock(), source="https://...", root=Path("root.json")) as app:
        async for token in app.generate("dialogue", "Bonjour"): ...

Delivery is blocking and may be used with plain `with`; answering needs `async with`, which ends every engine process.
What is only needed to answer is imported there: asyncio alone is 30 ms of CPU, a third of a `kensho status`.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from kensho import __version__
from kensho.app.answer_stream import AnswerStream
from kensho.app.answers import GenerateOptions, Prompt, check_prompt
from kensho.app.asking import Asking, ask_logits
from kensho.app.deliveries import Deliveries, read_root
from kensho.app.status import Status, with_engines_out, with_loaded
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import ConfigError, NotInstalled, UsageError
from kensho.base.events import Event, Level, Service
from kensho.base.ids import check_name
from kensho.settings import Settings
from kensho.telemetry.log_file import LogFile
from kensho.telemetry.pipeline import Pipeline

if TYPE_CHECKING:
    from kensho.app.activity import LoadedModel
    from kensho.app.background import Background
    from kensho.app.opening import LoadedEngine
    from kensho.app.routing import Router, Task
    from kensho.app.serving import Serving
    from kensho.app.shelf import StoreShelf
    from kensho.delivery.checker import VerifyReport
    from kensho.delivery.installed import Release
    from kensho.delivery.plan import Plan
    from kensho.delivery.releases import ReleaseRef
    from kensho.delivery.repair import RepairReport
    from kensho.delivery.store import InstalledModel
    from kensho.delivery.updater import PullReport
    from kensho.resilience.circuit import Mode
    from kensho.runtime.cache.loaded_graph import LoadedGraph
    from kensho.runtime.hosts.frames import FaultKind
    from kensho.runtime.hosts.prefork import Prefork


class Kensho:
    """One store and the models that answer from it. Cheap to make; parts come with their first use.

    `source` and `root` make the store where there is none, and let `generate` pull what is not installed. `listener`
    hears every event. `has_log` False: nothing is written to the log (commands that only look).
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        source: str | None = None,
        root: Path | None = None,
        listener: Callable[[Event], None] | None = None,
        has_log: bool = True,
        first_host: "Prefork | None" = None,
    ) -> None:
        """`first_host`: a host that was forked before the imports (`runtime.hosts.prefork`), for the first engine; the
        caller closes it at the end."""
        if (source is None) != (root is None):
            raise UsageError("source and root go together", advice="give both, or neither for a store that exists")
        self.settings = settings
        self._clock = clock
        self._source = source
        self._root = root
        self._first_host = first_host
        # The log lies in the store: before there is a store there is no log.
        self._pipeline = Pipeline(
            [LogFile(settings.store / "logs")] if has_log else [], clock=clock, level=settings.log_level
        )
        if listener is not None:
            self._pipeline.listen(listener)
        self._deliveries = Deliveries(settings, client_version=__version__, clock=clock, emit=self.emit)
        self._serving: Serving | None = None
        self._background: Background | None = None

    # --- events and time ---

    def emit(self, event: Event) -> None:
        self._pipeline.emit(event)

    @property
    def clock(self) -> Clock:
        return self._clock

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with every event from now on; returns the function that ends it."""
        return self._pipeline.listen(listener)

    def set_level(self, service: Service, level: Level) -> None:
        """From now on the log has what this service says at this level or above."""
        self._pipeline.set_level(service, level)

    def now(self) -> datetime:
        """The wall clock's time, UTC."""
        return self._deliveries.now()

    # --- delivery: blocking ---

    def init(self, url: str, root: bytes) -> int:
        """Make the store and trust this root; returns its version. Doing it again is harmless."""
        return self._deliveries.init(url, root)

    def plan(self, models: Sequence[str] = ()) -> "list[Plan]":
        """What `pull` would do. Uses the network for metadata."""
        return self._deliveries.plan(_names(models))

    def pull(self, models: Sequence[str] = ()) -> "PullReport":
        """Bring models (default: all installed) to their newest version. Raises TrustError, TransportError,
        NotInstalled, StorageError: nothing was changed then; what goes wrong with one model is in its result."""
        self._ensure_store()
        return self._deliveries.pull(_names(models))

    def published(self) -> "list[ReleaseRef]":
        """The newest release of each model that the source has now."""
        return self._deliveries.published()

    def verify(self, *, is_full: bool = False) -> "VerifyReport":
        """Check the stored bytes, never using the network: what has changed, or every byte."""
        return self._deliveries.verify(is_full=is_full)

    def repair(self) -> "RepairReport":
        """Mend what is damaged, from local bytes first, then the network."""
        return self._deliveries.repair()

    def rollback(self, model: str, version: str | None = None) -> str:
        """Make the previous (or the named installed) version current, from this disk; returns it."""
        return self._deliveries.rollback(check_name(model, "model name"), version)

    def pin(self, model: str, version: str | None) -> None:
        """Hold a model at a version that is installed or that a pull may bring; None: follow the newest again."""
        held = None if version is None else check_name(version, "version")
        self._deliveries.pin(check_name(model, "model name"), held)

    def gc(self) -> int:
        """Remove what no current, previous or pinned version needs and nobody uses; returns the bytes freed."""
        return self._deliveries.gc()

    def status(self) -> Status:
        """How things stand. Never uses the network, leaves no trace, hashes only what was touched since its check."""
        status = self._deliveries.status()
        if self._serving is not None:
            from kensho.app.activity import loaded_versions

            status = with_loaded(status, loaded_versions(self._serving))
        from kensho.app.engines_out import engines_out

        out = engines_out(self.settings.store, self._serving, fallback_of=self._deliveries.fallback_of)
        return with_engines_out(status, out)

    def releases(self) -> "list[Release]":
        """Every installed version of every model; none where there is no store."""
        return self._deliveries.store.state.releases() if self._deliveries.has_store() else []

    def tasks(self) -> "list[Task]":
        """The tasks of the settings that can be answered now."""
        from kensho.app.routing import look_at_tasks

        if not self.settings.tasks or not self._deliveries.has_store():
            return []
        installed = {model.model: model.version for model in self._deliveries.store.installed()}
        return look_at_tasks(self.settings.tasks, installed, fallback_of=self._deliveries.fallback_of)

    # --- answering: asyncio ---

    async def compile(self, model: str) -> "LoadedGraph":
        """Find or make the model's graph, so that the first answer need not wait for it."""
        return await self._serve().compile(await self._ready(model))

    async def warm(self, model: str) -> "LoadedGraph":
        """Compile the model if need be, load it and keep it loaded until the application is closed (row R6): the
        version that the store has now, and each that it has later, as soon as that can answer."""
        installed = await self._ready(model)
        serving = self._serve()
        graph = await serving.compile(installed)
        await serving.pin(installed)
        return graph

    def generate(self, model: str, prompt: Prompt, options: GenerateOptions | None = None) -> AnswerStream:
        """The answer, token by token: iterate it once. `record` has the figures afterwards.

        `model` may be a task of the settings: its models are tried in their order. Pulls the model first if it is not
        installed and a source was given. Raises UsageError for what can never be answered. Iterating raises
        NotInstalled, Damaged, ModelError, CompileFailed, EngineError, Overloaded (see kensho.base.errors for what
        helps).
        """
        asking = self._asking(model, prompt, options)
        return AnswerStream(asking, max_context=self.settings.max_context, clock=self._clock)

    async def logits(self, model: str, prompt: Prompt, options: GenerateOptions | None = None) -> "Sequence[float]":
        """What the model thinks of every id of its vocabulary as the next one after the prompt: float32, unscaled, in
        the order of the ids; the caller's own. Of `options` what is about who answers, when, and the prompt.

        Asked once more, of another engine, if the first fails. Raises what `generate` does; a deadline is of the whole
        call. Costs the prefill of the prompt, nothing of which is kept.
        """
        return await ask_logits(self._asking(model, prompt, options))

    def loaded(self) -> "list[LoadedModel]":
        """What is loaded and how it does: tiers, engines, circuits, queues. Changes nothing, counts as no use.

        For the event loop's thread.
        """
        if self._serving is None:
            return []
        from kensho.app.activity import describe_loaded

        return describe_loaded(self._serving)

    def engine_pids(self, model: str) -> dict[str, int | None]:
        """Process ids of a loaded model's engine hosts by engine name; None for one that is not running."""
        return {engine.name: engine.pid for engine in self._engines(model)}

    def arm_fault(self, model: str, engine: str, kind: "FaultKind", *, times: int = 1) -> None:
        """Let the next `times` requests to an engine of a loaded model meet a real failure (row S6): a rehearsal.

        ConfigError unless the setting `allow_faults` is on, the model is loaded and has such an engine.
        """
        self._engine(model, engine).arm_fault(kind, times)

    def clear_faults(self, model: str, engine: str) -> None:
        """The engine works again as it can. Raises what `arm_fault` does."""
        self._engine(model, engine).clear_faults()

    def force_circuit(self, model: str, engine: str, mode: "Mode | None", *, for_s: Seconds | None = None) -> None:
        """A person's word about one engine of a loaded model: FORCED_OPEN, FORCED_CLOSED or METRICS_ONLY, for so many
        seconds (None: until it is taken back), or None: the circuit decides again, HARD_OPEN included. ConfigError."""
        self._engine(model, engine)
        served = self._serve().served(model)
        assert served is not None  # noqa: S101  # it has that engine
        served.scheduler.force(engine, mode, for_s)

    # --- the ends ---

    async def aclose(self) -> None:
        """End every engine process and close the store. Idempotent."""
        background, self._background = self._background, None
        if background:
            await background.end_warming()
            background.stop_scrubbing()
        try:
            if self._serving is not None:
                serving, self._serving = self._serving, None
                await serving.close()
            if background:
                await background.end_scrubbing()
        finally:
            self.close()

    def close(self) -> None:
        """Close the store and the log; with engines running use `aclose`. Idempotent."""
        self._deliveries.close()
        self._pipeline.close()

    async def __aenter__(self) -> Self:
        if self.settings.scrub or self.settings.warm or self.settings.warm_up:
            from kensho.app.background import Background

            self._background = Background(
                self.settings,
                self._deliveries,
                shelf=self._shelf,
                serve=self._serve,
                listen=self.listen,
                clock=self._clock,
                emit=self.emit,
            )
            self._background.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Left without an exception, a compile that runs in the background is finished first: the next start is then
        as fast as it can be. `aclose`, and an exception, end it."""
        try:
            if self._background:
                await self._background.end_warming()
            if kind is None and self._serving is not None:
                await self._serving.finish()
        finally:
            await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- below ---

    def _engine(self, model: str, engine: str) -> "LoadedEngine":
        for host in self._engines(model):
            if host.name == engine:
                return host
        raise ConfigError(f"model {model!r} has no loaded engine {engine!r}", advice="let it answer once first")

    def _engines(self, model: str) -> "Sequence[LoadedEngine]":
        served = self._serving.served(model) if self._serving else None
        return served.engines if served else ()

    def _serve(self) -> "Serving":
        if self._serving is None:
            from kensho.app.opening import ModelOpener
            from kensho.app.serving import Serving
            from kensho.runtime.system.memory import read_memory

            self._serving = Serving(
                self.settings,
                make_opener=lambda emit: ModelOpener(
                    self.settings, clock=self._clock, emit=emit, first_host=self._first_host
                ),
                shelf=self._shelf,
                read_memory=read_memory,
                clock=self._clock,
                emit=self.emit,
            )
        return self._serving

    def _ensure_store(self) -> None:
        if self._source is not None and self._root is not None and not self._deliveries.has_store():
            self._deliveries.init(self._source, read_root(self._root))

    def _shelf(self) -> "StoreShelf":
        from kensho.app.shelf import StoreShelf

        return StoreShelf(lambda: self._deliveries.store, self.settings, clock=self._clock, emit=self.emit)

    async def _answering(self, model: str) -> "InstalledModel":
        """The version that answers: the one that is loaded, else what the store has."""
        loaded = self._serving.answering(model) if self._serving else None
        return loaded or await self._ready(model)

    async def _ready(self, model: str) -> "InstalledModel":
        """What the store has, checked; pulled first where that is wanted and possible."""
        import asyncio

        return await asyncio.to_thread(self._make_ready, model)

    def _make_ready(self, model: str) -> "InstalledModel":
        self._ensure_store()
        try:
            installed = self._deliveries.store.model(model)
        except NotInstalled:
            if self._source is None:
                raise
            failed = self.pull([model]).first_error
            if failed is not None:
                raise failed from None
            installed = self._deliveries.store.model(model)
        if self._serving is not None and self._serving.is_loaded(installed):
            return installed  # its engines have the verified files open already
        return self._deliveries.ready_model(model)

    def _asking(self, model: str, prompt: Prompt, options: GenerateOptions | None) -> Asking:
        check_prompt(prompt)
        options = options or GenerateOptions()
        router = self._router(check_name(model, "model name"), options.engine)
        return Asking(router, prompt, options, serve=self._serve, clock=self._clock)

    def _router(self, wanted: str, engine: str | None) -> "Router":
        import asyncio

        from kensho.app.routing import Router, engine_facts

        async def fallback_of(model: str) -> str | None:
            return await asyncio.to_thread(self._deliveries.fallback_of, model)

        return Router(
            wanted,
            engine,
            tasks=self.settings.tasks,
            ready=self._answering,
            fallback_of=fallback_of,
            engines_of=lambda installed: engine_facts(self._serving.served(installed.model) if self._serving else None),
        )


def _names(models: Sequence[str]) -> list[str]:
    return [check_name(model, "model name") for model in models]
