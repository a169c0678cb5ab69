"""One engine and its circuit: carries out what `breaker.step` decides. The only caller of Engine.start and kill.

A guard restarts a dead host by itself, runs canaries on it, and tells every change of mode by an event. Streams ask
it for a permit and report each permit's outcome exactly once. Everything happens on one event loop; nothing blocks.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing

from kensho.base.backoff import Rng
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineCrashed, KenshoError
from kensho.base.events import CanaryFinished, CircuitChanged, Emit
from kensho.base.inference import Engine, Sampling
from kensho.resilience import breaker
from kensho.resilience.circuit import (
    Admit,
    Admitted,
    BreakerSettings,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Cancelled,
    Changed,
    Effect,
    Failed,
    Force,
    HostFailed,
    HostReady,
    Input,
    KillHost,
    Mode,
    Rejected,
    RunCanary,
    SetTimer,
    StartHost,
    Succeeded,
    Tick,
)
from kensho.resilience.classify import FailureClass, classify


class Canary:
    """A fixed prompt and the ids that a healthy engine answers greedily: the probe that spares users (row S2).

    Best: `expected_ids` from the model's self-test. Without them `learn` asks an engine that has given no reason for
    doubt. If a restarted engine is probed before anyone could be asked, it must at least repeat itself.
    """

    LEARNED_TOKENS = 4

    def __init__(self, prompt_ids: Sequence[int], expected_ids: Sequence[int] | None = None) -> None:
        self._prompt_ids = tuple(prompt_ids)
        self._expected_ids = None if expected_ids is None else tuple(expected_ids)

    @property
    def is_known(self) -> bool:
        return self._expected_ids is not None

    async def learn(self, engine: Engine) -> None:
        """Take this engine's answer for the right one, unless one is known. Raises what the engine raises."""
        ids = await self._ask(engine)
        if self._expected_ids is None:
            self._expected_ids = ids

    async def passes(self, engine: Engine) -> bool:
        """Whether the engine answers with the expected ids. Raises what the engine raises."""
        ids = await self._ask(engine)
        if self._expected_ids is None:
            self._expected_ids = ids
        return ids == self._expected_ids

    async def _ask(self, engine: Engine) -> tuple[int, ...]:
        wanted = self.LEARNED_TOKENS if self._expected_ids is None else max(1, len(self._expected_ids))
        async with aclosing(engine.generate(self._prompt_ids, (), Sampling(max_tokens=wanted))) as ids:
            return tuple([token async for token in ids])


class Guard:
    """The circuit around `engine`. `lane` is held by whoever uses the engine: one stream, canary or start at a time."""

    def __init__(
        self,
        engine: Engine,
        canary: Canary,
        *,
        model: str,
        settings: BreakerSettings,
        clock: Clock,
        rng: Rng,
        emit: Emit,
        on_change: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.lane = asyncio.Lock()
        self._canary = canary
        self._model = model
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._on_change = on_change
        self._state = breaker.closed(clock.monotonic_s())
        self._was_started = False
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._killing: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def admits(self) -> bool:
        """Whether a request would get a permit now."""
        return not self._is_closed and self._state.mode in breaker.ADMITTING

    @property
    def was_started(self) -> bool:
        """True after the first successful start, also while the host is dead and about to come back."""
        return self._was_started

    def admit(self) -> int | None:
        """A permit, to be settled exactly once by `succeeded`, `failed` or `cancelled`; None: not now."""
        if self._is_closed:
            return None
        effects = self._step(Admit())
        return next((effect.generation for effect in effects if isinstance(effect, Admitted)), None)

    def succeeded(self, permit: int) -> None:
        self._step(Succeeded(permit))

    def failed(self, permit: int, failure: FailureClass) -> None:
        self._step(Failed(permit, failure))

    def cancelled(self, permit: int) -> None:
        self._step(Cancelled(permit))

    def force(self, mode: Mode | None) -> None:
        """A person's word: FORCED_OPEN, FORCED_CLOSED, or None to give the decision back. Raises ConfigError."""
        self._step(Force(mode))

    def snapshot(self) -> breaker.Snapshot:
        return breaker.snapshot(self._state, self._clock.monotonic_s())

    def notice_death(self) -> None:
        """Let the circuit restart a host that died while nobody used it."""
        is_idle = self._state.mode is Mode.CLOSED and not self._is_closed and not self.lane.locked()
        if is_idle and self._was_started and not self.engine.is_alive:
            self.failed(self._state.generation, FailureClass.CRASH)

    async def start(self) -> None:
        """Bring the engine up for the first time. The caller holds the lane.

        Raises EngineCrashed if it does not come up, and if a host that was up is gone: bringing that back is the
        circuit's work, not a user's. Only a circuit that is forced closed starts it here, since nobody else would.
        """
        if self.engine.is_alive:
            return
        if self._was_started and self._state.mode is not Mode.FORCED_CLOSED:
            raise EngineCrashed(f"the host of engine {self.name} is gone", advice="it is being started again")
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self.engine.start()
        except KenshoError as error:
            raise EngineCrashed(f"engine {self.name} did not start: {error.message}", advice=error.advice) from error
        except TimeoutError as error:
            raise EngineCrashed(f"engine {self.name} did not start in time", advice="it is tried again") from error
        self._was_started = True

    async def close(self) -> None:
        """End the background work and the engine. Nothing of either is left. Idempotent."""
        self._is_closed = True
        if self._timer:
            self._timer.cancel()
        tasks = [task for task in (self._probing, self._starting, self._killing) if task and not task.done()]
        for task in tasks:
            task.cancel()
        await self.engine.close()  # first, so that no task waits for the engine's answer
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.close()  # a start that was under way may have finished in between

    def _step(self, event: Input) -> tuple[Effect, ...]:
        self._state, effects = breaker.step(self._state, event, self._clock.monotonic_s(), self._settings, self._rng())
        for effect in effects:
            if not self._is_closed:
                self._carry_out(effect)
        return effects

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Admitted() | Rejected():
                pass  # answered by `admit`
            case KillHost():
                for task in (self._starting, self._probing):
                    if task and task is not asyncio.current_task():
                        task.cancel()
                self._killing = asyncio.create_task(self.engine.kill())
            case StartHost(generation):
                self._starting = asyncio.create_task(self._restart(generation))
            case RunCanary(generation):
                self._probing = asyncio.create_task(self._probe(generation))
            case SetTimer(at_s):
                self._set_timer(at_s)
            case Changed():
                self._emit(
                    CircuitChanged(
                        engine=self.name,
                        model=self._model,
                        from_state=effect.from_mode.value,
                        to_state=effect.to_mode.value,
                        reason=effect.reason,
                        next_step=effect.next_step,
                    )
                )
                asyncio.get_running_loop().call_soon(self._on_change)

    def _set_timer(self, at_s: Seconds) -> None:
        if self._timer:
            self._timer.cancel()
        wait_s = max(0.0, at_s - self._clock.monotonic_s())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._step(Tick())
        if self._timer is None and self._state.until_s is not None:
            self._set_timer(self._state.until_s)  # loops may call a hair too early

    async def _restart(self, generation: int) -> None:
        try:
            if self._killing:
                await self._killing
            async with self.lane:
                await self.engine.start()
        except KenshoError:
            self._step(HostFailed(generation))
        else:
            self._was_started = True
            self._step(HostReady(generation))

    async def _probe(self, generation: int) -> None:
        began_s = self._clock.monotonic_s()
        result: Input = CanaryCancelled(generation)
        outcome = "cancelled"
        try:
            async with self.lane:
                is_right = await self._canary.passes(self.engine)
            result = CanaryPassed(generation) if is_right else CanaryFailed(generation, FailureClass.MISMATCH)
            outcome = "passed" if is_right else "failed: it answered other ids than expected"
        except KenshoError as error:
            failure = classify(error) or FailureClass.UNKNOWN
            result, outcome = CanaryFailed(generation, failure), f"failed: {error.message}"
        finally:
            seconds = self._clock.monotonic_s() - began_s
            self._emit(CanaryFinished(engine=self.name, model=self._model, outcome=outcome, seconds=seconds))
            if not self._is_closed:
                self._step(result)
