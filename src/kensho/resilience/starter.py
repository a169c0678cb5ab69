"""Brings a model's engines up: the first that can, the others behind it, one that was asked for by name.

A failed start is its circuit's to mend.
"""

import asyncio
from collections.abc import Mapping

from kensho.base.errors import EngineError, KenshoError
from kensho.resilience.classify import FailureClass
from kensho.resilience.failover import nobody_left
from kensho.resilience.guard import Guard


class Starter:
    """Its tasks are kept by the guards, and end with them."""

    def __init__(self, guards: Mapping[str, Guard], *, model: str) -> None:
        self._guards = guards
        self._model = model
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._circuit_changed = asyncio.Event()

    def note_change(self) -> None:
        """A circuit has changed."""
        self._circuit_changed.set()

    async def start_first(self) -> None:
        """Returns when one engine is up. Raises what is wrong with the last one that was tried, or EngineError;
        EnginesOff if the circuits let none be tried."""
        why: EngineError | None = None
        for guard in self._guards.values():
            async with guard.lane:
                permit = guard.admit()
                if permit is None:
                    continue
                try:
                    await guard.start()
                except EngineError as error:
                    why = error
                    guard.failed(permit, FailureClass.CRASH)
                else:
                    guard.cancelled(permit)
                    return
        if why is None and await self._one_comes_back():
            return
        if why and isinstance(why.__cause__, KenshoError) and not isinstance(why.__cause__, EngineError):
            raise why.__cause__  # a damaged graph, say, is mended by other means than an engine
        off = nobody_left(tuple(self._guards.values()), f"no engine of model {self._model!r} may be started")
        if why is None and not any(guard.snapshot().counters.restarts for guard in self._guards.values()):
            raise off  # none was tried: nothing is known to be wrong with the graph
        why = why or off
        raise EngineError(f"no engine of model {self._model!r} starts", advice=why.advice) from why

    async def bring_up_all(self) -> None:
        for name in self._guards:
            await self.bring_up(name)

    async def bring_up(self, name: str) -> None:
        """Start an engine that never was. Returns when that has come out, either way. Several may wait for one start,
        which goes on when they leave."""
        guard, load = self._guards[name], self._loads.get(name)
        if guard.was_started:
            return
        if load is None or load.done():
            load = self._loads[name] = asyncio.create_task(self._load(guard))
            guard.keep(load)
        await asyncio.wait({load})

    async def _one_comes_back(self) -> bool:
        """Wait for circuits that remember trouble: their engines are being started and proven. False: none passed."""
        guards = self._guards.values()
        while not any(guard.admits and guard.was_started for guard in guards):
            if any(guard.admits for guard in guards) or not any(guard.is_coming for guard in guards):
                return False
            self._circuit_changed.clear()
            await self._circuit_changed.wait()
        return True

    async def _load(self, guard: Guard) -> None:
        async with guard.lane:
            permit = guard.admit()
            if permit is None:
                return
            try:
                await guard.start()
            except EngineError:
                guard.failed(permit, FailureClass.CRASH)
            except BaseException:
                guard.cancelled(permit)
                raise
            else:
                guard.cancelled(permit)  # a load is no verdict
