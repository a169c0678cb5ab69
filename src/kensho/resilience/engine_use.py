"""One engine's work for one request, in a task of its own: whoever asked can leave at any moment, and at once.

The task holds the engine's lane until the engine has answered, failed, or stopped: nobody is sent to an engine that is
still busy with what nobody wants any more. An engine that hangs obeys no cancel either; so its stopping is watched as
its answering is, and what follows is its circuit's business, not that of whoever left. A load is not ended by leaving:
the next request needs it as well.

`TokenUse` is an engine's part of a stream; others are made by saying what to `_work`.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import aclosing

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineCrashed, EngineError, EngineHung, KenshoError
from kensho.base.inference import Sampling
from kensho.resilience.classify import FailureClass, classify
from kensho.resilience.estimate import EngineTimes
from kensho.resilience.failover import FailoverSettings
from kensho.resilience.guard import Guard
from kensho.resilience.watch import Watch

OnEnd = Callable[["EngineUse"], None]


class EngineLost(Exception):  # not an error: the request may go on elsewhere
    """An engine's part of a request ended in a failure. Its circuit was told."""

    def __init__(self, engine: str, why: EngineError, silent_since_s: Seconds, *, was_working: bool) -> None:
        super().__init__(str(why))
        self.engine = engine
        self.why = why
        self.silent_since_s = silent_since_s
        self.was_working = was_working
        """It had the request in hand: it may have died of it."""


class EngineUse(ABC):
    """Begins at once. `on_end` is called when the engine is free again, or gone."""

    def __init__(self, guard: Guard, *, settings: FailoverSettings, clock: Clock, on_end: OnEnd) -> None:
        self._guard = guard
        self._settings = settings
        self._clock = clock
        self._watch = Watch(guard.engine, clock, guard.keep)
        self._is_left = False
        self._left_s = -float("inf")
        self._may_cancel = True
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: on_end(self))
        guard.keep(self._task)

    @property
    def engine(self) -> str:
        return self._guard.name

    def leave(self) -> None:
        """Nobody wants it any more. The engine stops within a step, or is killed; `on_end` tells. Idempotent."""
        if self._is_left:
            return
        self._is_left, self._left_s = True, self._clock.monotonic_s()
        if self._may_cancel:
            self._task.cancel()

    async def wait(self, timeout_s: Seconds) -> None:
        """Until its end, or so long."""
        await asyncio.wait({self._task}, timeout=timeout_s)

    @property
    def loss(self) -> EngineLost | None:
        """After the end: the engine's failure, if it was one."""
        if self._task.cancelled():
            gone = EngineCrashed(f"engine {self.engine} was closed", advice="open the model again")
            return None if self._is_left else EngineLost(self.engine, gone, self._watch.since_s, was_working=False)
        error = self._task.exception()
        return error if isinstance(error, EngineLost) else None

    def is_complete(self) -> bool:
        """After an end without loss: whether the answer is. Raises what was raised, which is not the engine's doing."""
        return self._task.result()

    @abstractmethod
    async def _work(self) -> bool:
        """Ask the engine, which is up. True: the answer is complete."""

    async def _run(self) -> bool:
        guard, watch, is_working = self._guard, self._watch, False
        async with guard.lane:
            permit = guard.admit()
            if permit is None:  # its circuit opened while the lane was awaited
                why = EngineError(f"engine {guard.name} takes no requests now", advice="another engine may")
                raise EngineLost(guard.name, why, watch.since_s, was_working=False)
            try:
                await self._load()
                is_working = True
                is_complete = await self._work()
                if watch.has_killed:  # it was told to stop, and did not
                    raise watch.hung()
            except BaseException as error:
                fault = self._fault_behind(error)
                if fault is None:
                    guard.cancelled(permit)
                    raise
                guard.failed(permit, self._kind_of(fault))
                raise EngineLost(guard.name, fault, watch.since_s, was_working=is_working) from error
            finally:
                watch.close()
            guard.succeeded(permit, watch.pace_s)
            return is_complete

    async def _load(self) -> None:
        self._may_cancel = False
        await self._guard.start()
        self._may_cancel = True
        if self._is_left:
            raise asyncio.CancelledError

    def _kind_of(self, fault: EngineError) -> FailureClass:
        return classify(fault) or FailureClass.UNKNOWN

    def _expect_first(self, ids: int) -> None:
        """The wait for what comes after a prefill of so many ids begins."""
        most_s = self._settings.first_token_s + self._settings.prefill_id_s * ids
        self._watch.expect(self._guard.silence.first_token_s(ids, most_s))

    def _note_stop(self, ids: int, times: EngineTimes) -> None:
        """It was left, and has stopped: if nothing had come yet, a prefill of so many ids takes longer than it had."""
        if not self._watch.tokens and not self._watch.has_killed:
            times.stopped(ids, self._left_s - self._watch.since_s, self._left_s)

    def _fault_behind(self, error: BaseException) -> EngineError | None:
        """What the engine did wrong, if this is how its use has ended; None: nothing."""
        if isinstance(error, EngineError) and (isinstance(error, EngineHung) or not self._watch.has_killed):
            return error
        if self._watch.has_killed:
            fault: EngineError = self._watch.hung()
        elif isinstance(error, KenshoError) or not isinstance(error, Exception) or self._watch.is_paused:
            return None
        else:
            words = f"engine {self.engine} failed in a way of its own: {type(error).__name__}: {error}"[:500]
            fault = EngineError(words, advice="another engine may answer; report it")
        fault.__cause__ = error
        return fault


class TokenUse(EngineUse):
    """One engine's part of a stream: what comes after prompt + accepted goes to `take`, which says whether it wants
    more. What it takes goes into `times`."""

    def __init__(
        self,
        guard: Guard,
        prompt_ids: Sequence[int],
        accepted_ids: Sequence[int],
        sampling: Sampling,
        *,
        take: Callable[["TokenUse", int], bool],
        times: EngineTimes,
        settings: FailoverSettings,
        clock: Clock,
        on_end: OnEnd,
    ) -> None:
        self._prompt_ids = prompt_ids
        self._accepted_ids = tuple(accepted_ids)
        self._sampling = sampling
        self._take = take
        self._times = times
        super().__init__(guard, settings=settings, clock=clock, on_end=on_end)

    async def _work(self) -> bool:
        known = len(self._prompt_ids) + len(self._accepted_ids)
        self._expect_first(known)
        try:
            return await self._read(known)
        except asyncio.CancelledError:
            self._note_stop(known, self._times)
            raise

    async def _read(self, known: int) -> bool:
        watch, silence, most_s = self._watch, self._guard.silence, self._settings.token_s
        async with aclosing(self._guard.engine.generate(self._prompt_ids, self._accepted_ids, self._sampling)) as ids:
            async for token in ids:
                took_s = watch.came()
                if watch.tokens > 1:
                    self._times.stepped(took_s, watch.now_s)
                    silence.gap(took_s)
                else:
                    silence.first(took_s, known)
                    if not self._accepted_ids:  # one that goes on finds what it had computed, and is no measure
                        self._times.prefilled(known, took_s, watch.now_s)
                self._may_cancel = wants_more = self._take(self, token)
                watch.expect(silence.token_s(most_s))  # for the next one, or until it has stopped
                if not wants_more:
                    return False
        return True
