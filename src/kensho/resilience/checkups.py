"""Engines that seem healthy are asked their canary now and then, while nobody else asks: wrong numbers make no noise.

    checkups.look(is_busy=False)     # every second
    checkups.make_way()              # a request has come

Rules: (1) a check never stands before a request: it begins when nothing runs and nothing waits, and is given up when
somebody comes; (2) an engine that has not been checked since it was started is checked as soon as that harms nobody;
(3) one that has answered since its last check is checked after a minute: what answers wrongly does so for a minute of
silence at most; (4) what an engine keeps of its last conversation is lost by a check, so it is let rest for a while
first, unless its last check is long ago; (5) an engine that nobody has used is not checked again; (6) a wrong answer
counts as the failed canary that it is.

A canary whose answer nobody knows yet is learned at such a moment, from the engine that users have no wish of.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineError, WrongNumbers
from kensho.base.events import CanaryFinished, Emit
from kensho.base.structs import Struct
from kensho.resilience.canary import Canary, Verdict
from kensho.resilience.circuit import Mode
from kensho.resilience.classify import FailureClass
from kensho.resilience.engine_use import EngineUse, OnEnd
from kensho.resilience.failover import FailoverSettings
from kensho.resilience.guard import Guard

_JUDGED = frozenset({Mode.CLOSED, Mode.METRICS_ONLY})
"""Where a failure counts, and no canary runs anyway."""


class CheckupSettings(Struct):
    every_s: Seconds = 60.0
    """0: no check, not even the first one. A canary of a model with 270 M parameters takes some 0.1 s of one core."""
    idle_s: Seconds = 30.0
    """So long a conversation may pause before what the engine keeps of it is lost. Guess."""
    most_s: Seconds = 600.0
    """After so long without a check a pause of a second is enough. Guess."""


class Seen(Struct):
    """What is known of an engine that is up and idle."""

    idle_s: Seconds | None
    """Since its last answer; None: it has given none."""
    checked_s: Seconds | None
    """How long ago it last passed a canary; None: not since it was started."""
    has_answered_since: bool


def is_due(seen: Seen, settings: CheckupSettings) -> bool:
    """Whether to check it now. Pure."""
    if settings.every_s <= 0:
        return False
    has_rested = seen.idle_s is None or seen.idle_s >= settings.idle_s
    if seen.checked_s is None:
        return has_rested
    if not seen.has_answered_since:
        return False
    return seen.checked_s >= settings.most_s or (seen.checked_s >= settings.every_s and has_rested)


class Checkups:
    """Of the engines of one model, one at a time. Used from one event loop."""

    def __init__(
        self,
        guards: Mapping[str, Guard],
        canary: Canary,
        *,
        model: str,
        within_s: Seconds,
        settings: CheckupSettings,
        failover: FailoverSettings,
        clock: Clock,
        emit: Emit,
        pump: Callable[[], None],
    ) -> None:
        """`within_s`: a canary that takes longer hangs. `pump` is called when an engine is free again."""
        self._guards = guards
        self._canary = canary
        self._model = model
        self._within_s = within_s
        self._settings = settings
        self._failover = failover
        self._clock = clock
        self._emit = emit
        self._pump = pump
        self._running: EngineUse | None = None
        self._passed: dict[str, tuple[Seconds, int]] = {}
        """By engine: when its last check began, and how many calls it had answered with it."""

    def look(self, *, is_busy: bool) -> None:
        """Begin a check, if one is due and nobody is disturbed."""
        if is_busy or self._running:
            return
        idle = [guard for guard in self._guards.values() if guard.engine.is_alive and not guard.lane.locked()]
        idle = [guard for guard in idle if guard.admits and guard.snapshot().mode in _JUDGED]
        if not idle:
            return
        due = [guard for guard in idle if is_due(self._see(guard), self._settings)]
        if not self._canary.is_known:
            self._begin(Lesson, idle[-1])
        elif due:
            self._begin(Check, due[-1])

    def make_way(self) -> None:
        """Somebody wants an engine."""
        if isinstance(self._running, Check):
            self._running.leave()

    def _begin(self, kind: "type[Check | Lesson]", guard: Guard) -> None:
        self._running = kind(
            guard,
            self._canary,
            self._within_s,
            settings=self._failover,
            clock=self._clock,
            on_end=self._ended,
        )

    def _see(self, guard: Guard) -> Seen:
        now_s, seen = self._clock.monotonic_s(), guard.snapshot()
        ages = [age for age in (seen.last_success_ago_s, seen.last_failure_ago_s) if age is not None]
        checked_s, calls = self._passed.get(guard.name, (None, 0))
        ago_s = None if checked_s is None else now_s - checked_s
        if seen.counters.canaries and (ago_s is None or seen.in_mode_s < ago_s):
            ago_s = seen.in_mode_s  # its circuit has proven it since
        return Seen(min(ages, default=None), ago_s, seen.counters.calls > calls)

    def _ended(self, use: EngineUse) -> None:
        self._running = None
        loss = use.loss
        if isinstance(use, Check) and (loss is not None or use.has_passed):
            is_first = use.engine not in self._passed
            self._passed[use.engine] = (use.began_s, use.calls)
            if loss is not None or is_first:
                self._tell(use, f"failed: {loss.why.message}" if loss else "passed")
        self._pump()

    def _tell(self, check: "Check", outcome: str) -> None:
        self._emit(
            CanaryFinished(
                engine=check.engine,
                model=self._model,
                outcome=outcome,
                failure=check.failure,
                seconds=self._clock.monotonic_s() - check.began_s,
            )
        )


class _Asking(EngineUse):
    """The canary has an engine for itself."""

    def __init__(
        self,
        guard: Guard,
        canary: Canary,
        within_s: Seconds,
        *,
        settings: FailoverSettings,
        clock: Clock,
        on_end: OnEnd,
    ) -> None:
        self._canary = canary
        self._within_s = within_s
        self.began_s = clock.monotonic_s()
        self.calls = guard.snapshot().counters.calls + 1
        """That the engine will have been asked for when this is over."""
        super().__init__(guard, settings=settings, clock=clock, on_end=on_end)

    async def _work(self) -> bool:
        self._watch.expect(self._within_s)
        await self._ask()
        return True

    @abstractmethod
    async def _ask(self) -> None: ...


class Check(_Asking):
    """Of an engine that nobody doubts."""

    has_passed = False
    failure = ""
    """Its kind."""
    _verdict: Verdict | None = None

    async def _ask(self) -> None:
        self._verdict = verdict = await self._canary.judge(self._guard.engine, self._clock.monotonic_s)
        if verdict is not None:
            raise WrongNumbers(f"canary on {self.engine}: {verdict.words}", advice="another engine answers meanwhile")
        self.has_passed = True

    def _kind_of(self, fault: EngineError) -> FailureClass:
        """Numbers that are wrong where the right ones are known leave no doubt, as they may in a request."""
        kind = self._verdict.failure if self._verdict else super()._kind_of(fault)
        kind = FailureClass.MISMATCH if kind is FailureClass.WRONG_NUMBERS else kind
        self.failure = str(kind)
        return kind


class Lesson(_Asking):
    """The canary learns its right answer."""

    async def _ask(self) -> None:
        await self._canary.learn(self._guard.engine, self._clock.monotonic_s)
