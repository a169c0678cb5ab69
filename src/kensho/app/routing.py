"""Find who answers (row S7): finds out what `resilience.router` wants to know, until it has chosen.

What the trust refuses has no fallback: a person must look. When nobody can answer, the error of the model that was
asked for is raised, as if there were no router.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kensho.base.errors import (
    CompileFailed,
    Damaged,
    EnginesOff,
    KenshoError,
    ModelError,
    NotEnoughMemory,
    NotEnoughSpace,
    NotInstalled,
    StoreMissing,
    TransportError,
)
from kensho.base.structs import Struct, replace
from kensho.resilience.router import Choice, EngineFacts, Facts, Look, Unusable, Usable, route, why_out

if TYPE_CHECKING:
    from kensho.app.opening import ServedModel
    from kensho.delivery.store import InstalledModel

CANNOT_BE_HAD = (Damaged, NotInstalled, NotEnoughSpace, StoreMissing, TransportError)
CANNOT_BE_LOADED = (NotEnoughMemory, EnginesOff, ModelError, CompileFailed)
"""Known only once it was tried; the model's fallback answers then, and the event of the attempt has said why."""


class Task(Struct):
    """A name that stands for models."""

    name: str
    models: tuple[str, ...]
    """In the order in which they are tried."""
    answering: str
    """The one that would answer now."""


class Router:
    """For one request. `choose` may be asked again, after `lost`."""

    def __init__(
        self,
        wanted: str,
        engine: str | None,
        *,
        tasks: Mapping[str, Sequence[str]],
        ready: "Callable[[str], Awaitable[InstalledModel]]",
        fallback_of: Callable[[str], Awaitable[str | None]],
        engines_of: "Callable[[InstalledModel], tuple[EngineFacts, ...]]",
    ) -> None:
        """`ready` gives a model, checked, or raises; `engines_of` what is known of its engines (empty: not loaded)."""
        self.wanted = wanted
        self._engine = engine
        self._tasks = tasks
        self._ready = ready
        self._fallback_of = fallback_of
        self._engines_of = engines_of
        self._facts: dict[str, Facts] = {}
        self._installed: dict[str, InstalledModel] = {}
        self._error: KenshoError | None = None

    async def choose(self) -> "tuple[InstalledModel, Choice]":
        """Raises what the first model's `ready` raised, or what it was lost by, when nobody can answer."""
        while True:
            step = route(self.wanted, self._facts, tasks=self._tasks, engine=self._engine)
            if isinstance(step, Choice):
                return self._installed[step.model], step
            if not isinstance(step, Look):
                raise self._error or NotInstalled(f"nobody answers {self.wanted!r}", advice="name a model")
            try:
                installed = await self._ready(step.model)
            except CANNOT_BE_HAD as error:
                await self.lost(step.model, error)
            else:
                self._installed[step.model] = installed
                known = Usable(installed.version, self._engines_of(installed))
                if why_out(known, self._engine):
                    known = replace(known, fallback=await self._fallback_of(step.model))
                self._facts[step.model] = known

    async def lost(self, model: str, error: KenshoError) -> None:
        """The model cannot answer after all."""
        self._error = self._error or error
        self._facts[model] = Unusable(error.message, await self._fallback_of(model))


def look_at_tasks(
    tasks: Mapping[str, Sequence[str]], installed: Mapping[str, str], *, fallback_of: Callable[[str], str | None]
) -> list[Task]:
    """The tasks that can be answered, as far as is known without loading or checking anything. `installed`: versions by
    model. Blocks for what `fallback_of` reads."""
    found = []
    for name in tasks:
        facts: dict[str, Facts] = {}
        while isinstance(step := route(name, facts, tasks=tasks, engine=None), Look):
            version = installed.get(step.model)
            facts[step.model] = Usable(version) if version else Unusable("not installed", fallback_of(step.model))
        if isinstance(step, Choice):
            found.append(Task(name, tuple(tasks[name]), step.model))
    return found


def engine_facts(served: "ServedModel | None") -> tuple[EngineFacts, ...]:
    """What a loaded model's circuits say of its engines."""
    if served is None:
        return ()
    return tuple(
        EngineFacts(name, seen.admits, f"is {seen.mode} ({seen.reason})", is_coming=seen.back_in_s == 0.0)
        for name, seen in served.scheduler.circuits().items()
    )
