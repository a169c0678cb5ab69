"""One engine and its circuit: carries out what `breaker.step` decides. The only caller of Engine.start and kill.

A guard restarts a dead host by itself, runs canaries on it, and tells every change of mode by an event. Streams ask
it for a permit and report each permit's outcome exactly once. Everything happens on one event loop; nothing blocks.
Whatever an engine raises becomes an outcome of its circuit: no task here ends with an exception.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from kensho.base.backoff import Rng
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineCrashed, KenshoError
from kensho.base.events import CanaryFinished, CircuitWouldOpen, Emit, circuit_changed
from kensho.base.inference import Engine
from kensho.resilience import breaker
from kensho.resilience.canary import Canary
from kensho.resilience.circuit import (
    Admitted,
    Began,
    BreakerSettings,
    CanaryCancelled,
    CanaryFailed,
    CanaryPassed,
    Changed,
    Effect,
    Force,
    HostFailed,
    HostReady,
    HostUnkillable,
    Hurry,
    Input,
    KillHost,
    LookAtMachine,
    Looked,
    Mode,
    Rejected,
    Resumed,
    RunCanary,
    SetTimer,
    StartHost,
    Tick,
    WouldOpen,
)
from kensho.resilience.circuit_status import CircuitStatus, circuit_status
from kensho.resilience.classify import FailureClass, classify, classify_start
from kensho.resilience.gate import Gate
from kensho.resilience.saved_circuit import resumed, saved
from kensho.resilience.silence import SilenceBudget
from kensho.resilience.surroundings import SLEPT_S, UNKNOWN, Surroundings

__all__ = ["Canary", "Guard", "hurry"]

KILL_S: Seconds = 10.0
"""An `Engine.kill` that takes longer has met a process that SIGKILL does not end. The host's own bound is 2.5 s."""

_STARTED_BY_REQUESTS = frozenset({Mode.FORCED_CLOSED, Mode.METRICS_ONLY})


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
        surroundings: Surroundings = UNKNOWN,
    ) -> None:
        self.engine = engine
        self.lane = asyncio.Lock()
        self.silence = SilenceBudget()
        self._canary = canary
        self._model = model
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._on_change = on_change
        self._surroundings = surroundings
        self._boot_s = surroundings.boot_s
        self._slept_s = self._boot_s() - clock.monotonic_s()
        self._next_look_s = self._boot_s() + SLEPT_S
        """By the clock of `boot_s`. Before that the machine cannot have slept so long that it matters."""
        kept = surroundings.memory.load(model, engine.name)
        self._form = surroundings.form_of(engine.name)
        state = resumed(kept, clock.monotonic_s(), surroundings.look().fingerprint, self._form)
        self._gate = gate = Gate(state, settings, now_s=clock.monotonic_s, rng=rng, carry_out=self._carry_out_all)
        # The gate's own methods: one around each would cost every call a tenth more.
        self.succeeded = gate.succeeded
        self.failed = gate.failed
        self.cancelled = gate.cancelled
        self._was_started = False
        self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._kills: set[asyncio.Task[None]] = set()
        self._tries: set[asyncio.Task[None]] = set()
        """Starts and canaries."""
        self._kept: set[asyncio.Task[Any]] = set()

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def admits(self) -> bool:
        """Whether a request would get a permit now."""
        return self._gate.admits and not self._is_closed

    @property
    def is_coming(self) -> bool:
        """It admits nobody yet, and within seconds it will, or will have been found wanting once more."""
        state = self._gate.state
        if state.mode is not Mode.OPEN or state.until_s is None:
            return not self._is_closed and state.mode in {Mode.HALF_OPEN, Mode.RESTARTING}
        return not self._is_closed and state.until_s - self._clock.monotonic_s() <= self._settings.restart_open_s

    @property
    def was_started(self) -> bool:
        """True after the first successful start, also while the host is dead and about to come back."""
        return self._was_started

    def prefers_others(self) -> bool:
        """Whether this request, drawn by lot, should rather go elsewhere: the engine has just come back."""
        share = breaker.share(self._gate.state, self._clock.monotonic_s(), self._settings)
        return share < 1.0 and self._rng() >= share

    def begin(self) -> None:
        """Set a circuit going that remembers trouble: it is started and proven in the background."""
        if not self._gate.admits:
            self._gate.send(Tick())
            until_s = self._gate.state.until_s
            if self._timer is None and until_s is not None:
                self._set_timer(until_s)

    def admit(self) -> int | None:
        """A permit, to be settled exactly once by `succeeded`, `failed` or `cancelled`; None: not now."""
        if self._is_closed:
            return None
        if self._boot_s() >= self._next_look_s:
            self._notice_sleep()
        return self._gate.admit()

    def keep(self, task: asyncio.Task[Any]) -> None:
        """It works with the engine, and `close` ends it."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    def force(self, mode: Mode | None, for_s: Seconds | None = None) -> None:
        """A person's word: FORCED_OPEN, FORCED_CLOSED, METRICS_ONLY, or None to give the decision back. `for_s`: how
        long it holds. Raises ConfigError."""
        self._gate.send(Force(mode, for_s))

    def snapshot(self) -> CircuitStatus:
        return circuit_status(self._gate.state, self._clock.monotonic_s())

    def hurry(self) -> None:
        """No other engine admits anybody: do not wait longer than must be."""
        if not self._is_closed:
            self._gate.send(Hurry())

    def notice_trouble(self) -> None:
        """Let the circuit restart a host that died while nobody used it, and prove one that slept with its machine."""
        if self._is_closed or self.lane.locked():
            return
        self._notice_sleep()
        if self.engine.is_alive or not self._was_started:
            return
        state = self._gate.state
        if state.mode is Mode.CLOSED:
            self.failed(state.generation, FailureClass.CRASH)

    async def start(self) -> None:
        """Bring the engine up for the first time. The caller holds the lane.

        Raises EngineCrashed if it does not come up, and if a host that was up is gone: bringing that back is the
        circuit's work, not a user's. Only a circuit that decides nothing starts it here, since nobody else would.
        """
        if self.engine.is_alive:
            return
        if self._was_started and self._gate.state.mode not in _STARTED_BY_REQUESTS:
            raise EngineCrashed(f"the host of engine {self.name} is gone", advice="it is being started again")
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self.engine.start()
        except TimeoutError as error:
            raise EngineCrashed(f"engine {self.name} did not start in time", advice="it is tried again") from error
        except Exception as error:  # whatever an engine raises, its circuit is what mends it
            advice = error.advice if isinstance(error, KenshoError) else "it is tried again"
            raise EngineCrashed(f"engine {self.name} did not start: {_words(error)}", advice=advice) from error
        self._was_started = True

    async def close(self) -> None:
        """End the background work and the engine. Nothing of either is left. Idempotent."""
        self._is_closed = True
        if self._timer:
            self._timer.cancel()
        tasks = [*self._tries, *self._kills, *self._kept]
        for task in tasks:
            task.cancel()
        await self.engine.close()  # first, so that no task waits for the engine's answer
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.engine.close()  # a start that was under way may have finished in between

    def _notice_sleep(self) -> None:
        boot_s = self._boot_s()
        self._next_look_s = boot_s + SLEPT_S
        slept_s = boot_s - self._clock.monotonic_s()
        if slept_s - self._slept_s > SLEPT_S:
            self._slept_s = slept_s
            if self.engine.is_alive:
                self._gate.send(Resumed())

    def _carry_out_all(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            if not self._is_closed:
                self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Admitted() | Rejected():
                pass  # answered by `admit`
            case KillHost():
                for task in self._tries - {asyncio.current_task()}:
                    task.cancel()
                _spawn(self._kill(), self._kills)
            case StartHost(generation):
                _spawn(self._restart(generation), self._tries)
            case RunCanary(generation):
                _spawn(self._probe(generation), self._tries)
            case LookAtMachine(generation):
                seen = self._surroundings.look()
                self._gate.send(Looked(generation, seen.fingerprint, seen.is_device_there))
            case SetTimer(at_s):
                self._set_timer(at_s)
            case WouldOpen(reason):
                self._emit(CircuitWouldOpen(engine=self.name, model=self._model, reason=reason))
            case Changed():
                self._tell(effect)

    def _tell(self, change: Changed) -> None:
        self._emit(
            circuit_changed(
                engine=self.name,
                model=self._model,
                from_state=change.from_mode.value,
                to_state=change.to_mode.value,
                reason=change.reason,
                next_step=change.next_step,
            )
        )
        self._surroundings.memory.save(self._model, self.name, saved(self._gate.state, self._form))
        asyncio.get_running_loop().call_soon(self._on_change)

    def _set_timer(self, at_s: Seconds) -> None:
        if self._timer:
            self._timer.cancel()
        wait_s = max(0.0, at_s - self._clock.monotonic_s())
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._gate.send(Tick())
        until_s = self._gate.state.until_s
        if self._timer is None and until_s is not None:
            self._set_timer(until_s)  # loops may call a hair too early

    async def _kill(self) -> None:
        try:
            async with asyncio.timeout(KILL_S):
                await self.engine.kill()
        except Exception:  # EngineUnkillable, TimeoutError, or nobody knows: it may still be there
            self._gate.send(HostUnkillable())

    async def _restart(self, generation: int) -> None:
        """Start the host, unless it is up: then whoever uses it is not waited for."""
        if self._kills:
            await asyncio.wait(self._kills)
        try:
            if not self.engine.is_alive:
                async with self.lane:
                    if self._gate.state.generation != generation:
                        return  # the old one could not be killed
                    self._gate.send(Began(generation))
                    await self.engine.start()
        except Exception as error:  # a task's exception would be nobody's, and the circuit would wait for ever
            self._gate.send(HostFailed(generation, classify_start(error)))
        else:
            self._was_started = True
            self._gate.send(HostReady(generation))

    async def _probe(self, generation: int) -> None:
        began_s = self._clock.monotonic_s()
        result: Input = CanaryCancelled(generation)
        outcome = "cancelled"
        try:
            async with self.lane:
                if self._gate.state.generation != generation:
                    return  # its circuit is elsewhere by now
                self._gate.send(Began(generation))
                began_s = self._clock.monotonic_s()
                wrong = await self._canary.judge(self.engine, self._clock.monotonic_s)
            result = CanaryFailed(generation, wrong.failure) if wrong else CanaryPassed(generation)
            outcome = f"failed: {wrong.words}" if wrong else "passed"
        except Exception as error:  # whatever it is: no verdict would mean the same canary once more
            result = CanaryFailed(generation, classify(error) or FailureClass.UNKNOWN)
            outcome = f"failed: {_words(error)}"
        finally:
            seconds = self._clock.monotonic_s() - began_s
            failure = str(result.failure) if isinstance(result, CanaryFailed) else ""
            self._emit(
                CanaryFinished(engine=self.name, model=self._model, outcome=outcome, failure=failure, seconds=seconds)
            )
            if not self._is_closed:
                self._gate.send(result)


def _spawn(work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


def _words(error: Exception) -> str:
    return error.message if isinstance(error, KenshoError) else f"{type(error).__name__}: {error}"


def hurry(guards: Sequence[Guard]) -> None:
    """When no engine admits a request that is there: the one that can be tried the soonest is tried (ADR 60)."""
    if any(guard.admits or guard.snapshot().mode in {Mode.HALF_OPEN, Mode.RESTARTING} for guard in guards):
        return
    waiting = [(seen.leaves_in_s or 0.0, guard) for guard in guards if (seen := guard.snapshot()).mode is Mode.OPEN]
    for _, guard in sorted(waiting, key=lambda one: one[0]):
        guard.hurry()
        if guard.snapshot().mode is not Mode.OPEN:
            return
