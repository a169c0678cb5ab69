"""Days of use with everything that goes wrong, in minutes: the real scheduler over scripted engines, on virtual time.

    report = soak(hours=24.0, rng=random.Random(1).random)
    assert not report.faults_found

Requests come at random, now and then two hundred in a second; clients leave in mid-answer, stop reading, or ask for the
impossible; long answers of every class, whole ones with deadlines among them, are interrupted by CRITICAL requests;
engines crash, hang, slow down, are killed, refuse to start or to end, and see numbers that are not finite; people force
circuits; the wall clock jumps. Once an hour the clients pause, and everything must have come to rest: of each request
exactly one outcome was told, and it is what its client saw; nothing runs, waits or is held, and no task is left. At the
end nothing at all is left, within half a second.
"""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from kensho.base.backoff import Rng
from kensho.base.clock import Seconds
from kensho.base.errors import DeadlineMissed, EngineError, Overloaded, PoisonRequest
from kensho.base.events import AdmissionChanged, Event, RequestFinished, RequestRejected, StreamMoved
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, field
from kensho.resilience.admission import Priority
from kensho.resilience.circuit import Mode
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import GRACE_S, Fault, FaultKind, ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

HOUR_S = 3600.0
EVERY_S = 4.0
"""A request comes, in the mean."""
FAULT_EVERY_S = 90.0
BURST_EVERY_S = 1200.0
BURST = 200
CLASH_EVERY_S = 300.0
CLASH_TOKENS = 400
REST_S = 900.0
"""Within which everything must have come to rest: longer than any default deadline, and than an engine's way back."""
CANARY = Canary([9], expected_ids([9], Sampling(max_tokens=2)))
FAULTS: tuple[FaultKind, ...] = ("fail", "hang", "slow", "crash", "nan", "deaf", "ignore_sigterm")
"""Without `wrong`: a wrong engine is believed until a canary asks it, and every answer here is checked."""

T = TypeVar("T")


class SoakReport(Struct, frozen=False):
    hours: float
    asked: int = 0
    outcomes: Counter[str] = field(factory=Counter)
    """As events told them: ok, failed, cancelled, deadline, and rejected."""
    faults: int = 0
    moved: int = 0
    interrupted: Counter[Priority] = field(factory=Counter)
    """Interruptions of answers whose readers read all the time."""
    levels: int = 0
    """Changes of the level of admission."""
    circuits: int = 0
    most_tasks: int = 0
    faults_found: list[str] = field(factory=list)
    """What did not hold. Empty: all is well."""


def soak(*, hours: float, rng: Rng) -> SoakReport:
    """Blocks for about half a minute a day of virtual time. Deterministic for a deterministic `rng`."""
    clock = VirtualClock()
    report = SoakReport(hours)
    run_virtual(_Soak(report, clock, rng).run(), clock=clock, limit_s=(hours + 1) * 2 * HOUR_S)
    return report


class _Wish(Struct, kw_only=True):
    """What one client asks for, and what it does."""

    priority: Priority
    tokens: int
    after_s: Seconds = 0.0
    within_s: Seconds | None = None
    is_whole: bool = False
    engine: str | None = None
    leaves_after: int | None = None
    """Tokens."""
    sleeps_after: int | None = None


class _Fate(Struct, frozen=False):
    """One request, as its client and as the events have it."""

    wanted: int
    """Tokens of the undisturbed answer."""
    got: int = 0
    seen: str = ""
    """ok, left, failed, or the reason of its refusal; empty while it waits."""
    told: list[tuple[str, int]] = field(factory=list)
    """(outcome, tokens); of a refusal -1."""

    def is_told_truly(self) -> bool:
        """Exactly one outcome, and the one that was seen. Of who left nobody knows what it would have seen."""
        if len(self.told) != 1:
            return False
        outcome, tokens = self.told[0]
        if outcome == "ok" and tokens != self.wanted:
            return False
        is_same = outcome in {"ok", "cancelled", "failed", "deadline"} if self.seen == "left" else outcome == self.seen
        return is_same and (tokens == -1 or tokens >= self.got)


class _Soak:
    def __init__(self, report: SoakReport, clock: VirtualClock, rng: Rng) -> None:
        self._report = report
        self._clock = clock
        self._rng = rng
        self._engines = [ScriptedEngine("primary"), ScriptedEngine("standby")]
        self._scheduler = Scheduler(
            *self._engines,
            model="soak",
            version="1",
            tier_of=lambda _: "",
            canary=CANARY,
            settings=SchedulerSettings(unread_tokens=32),
            clock=clock,
            rng=rng,
            emit=self._hear,
        )
        self._clients: set[asyncio.Task[None]] = set()
        self._fates: dict[int, _Fate] = {}
        """By the number of the request; since the last rest."""

    async def run(self) -> None:
        async with self._scheduler:
            self._calm_tasks = len(asyncio.all_tasks()) + 3  # a circuit's own: kill, start, probe
            for hour in range(math.ceil(self._report.hours)):
                share = min(1.0, self._report.hours - hour)
                async with asyncio.TaskGroup() as work:
                    for act, every_s in (
                        (self._ask_one, EVERY_S),
                        (self._harm, FAULT_EVERY_S),
                        (self._burst, BURST_EVERY_S),
                        (self._clash, CLASH_EVERY_S),
                    ):
                        work.create_task(self._now_and_then(act, every_s, self._clock.monotonic_s() + share * HOUR_S))
                await self._rest(hour + 1)
            closing_s = self._clock.monotonic_s()
        closing_s = self._clock.monotonic_s() - closing_s
        self._check(closing_s <= GRACE_S, f"the engines took {closing_s:g} s to end")
        left = asyncio.all_tasks() - {asyncio.current_task()}
        self._check(not left, f"tasks are left at the end: {left}")
        self._check(not any(engine.is_alive for engine in self._engines), "an engine is left at the end")

    async def _now_and_then(self, act: Callable[[], None], every_s: Seconds, until_s: Seconds) -> None:
        while (now_s := self._clock.monotonic_s()) < until_s:
            await asyncio.sleep(min(until_s - now_s, -math.log(1.0 - self._rng()) * every_s))
            act()

    # --- clients ---

    def _ask_one(self) -> None:
        self._ask(
            _Wish(
                tokens=1 + int(self._rng() * 60),
                priority=self._one_of(tuple(Priority)),
                within_s=self._one_of((None, None, None, 20.0 * self._rng() - 1.0)),
                is_whole=self._rng() < 0.3,
                engine=self._one_of((None,) * 9 + ("standby",)),
                leaves_after=int(self._rng() * 80) if self._rng() < 0.1 else None,
                sleeps_after=int(self._rng() * 40) if self._rng() < 0.05 else None,
            )
        )

    def _burst(self) -> None:
        for _ in range(BURST):
            self._ask_one()

    def _clash(self) -> None:
        """Long answers hold the engines, and CRITICAL requests come in between."""
        for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW):
            within_s, is_whole = 10.0 + 50.0 * self._rng(), self._rng() < 0.5
            self._ask(_Wish(tokens=CLASH_TOKENS, priority=priority, within_s=within_s, is_whole=is_whole))
        for _ in range(6):
            self._ask(_Wish(tokens=10, priority=Priority.CRITICAL, after_s=12.0 * self._rng()))

    def _ask(self, wish: _Wish) -> None:
        self._report.asked += 1
        task = asyncio.create_task(self._client(self._report.asked, wish))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _client(self, number: int, wish: _Wish) -> None:
        """What one client does; whatever it reads is held against the undisturbed answer."""
        await asyncio.sleep(wish.after_s)
        prompt, sampling, got = (number, 5, 7), Sampling(max_tokens=wish.tokens), list[int]()
        whole = expected_ids(prompt, sampling)
        answer = self._scheduler.submit(
            prompt,
            sampling,
            priority=wish.priority,
            deadline_s=None if wish.within_s is None else self._clock.monotonic_s() + wish.within_s,
            is_whole=wish.is_whole,
            engine=wish.engine,
        )
        fate = self._fates[answer.number] = _Fate(len(whole))
        try:
            async with aclosing(answer):
                fate.seen = await self._read(aiter(answer), wish, got)
        except DeadlineMissed:
            fate.seen = "deadline"
        except Overloaded as error:
            fate.seen = str(error.facts["reason"])
        except (EngineError, PoisonRequest):
            fate.seen = "failed"
        finally:
            fate.got = len(got)
            self._check(got == whole[: len(got)], f"request {number} got other ids than the undisturbed answer has")
            self._check(fate.seen != "ok" or got == whole, f"request {number} ended early without an error")
            if wish.sleeps_after is None:
                self._report.interrupted[wish.priority] += answer.record.pauses

    async def _read(self, ids: AsyncIterator[int], wish: _Wish, got: list[int]) -> str:
        async for token in ids:
            got.append(token)
            if len(got) == wish.leaves_after:
                return "left"
            if len(got) == wish.sleeps_after:
                await asyncio.sleep(120.0 * self._rng())
        return "ok"

    # --- harm ---

    def _harm(self) -> None:
        self._report.faults += 1
        engine, chance = self._one_of(self._engines), self._rng()
        if chance < 0.1:
            engine.die()
        elif chance < 0.2:
            engine.terminate()
        elif chance < 0.25:
            engine.refuse_starts(1 + int(self._rng() * 3))
        elif chance < 0.3:
            self._scheduler.force(engine.name, self._one_of((Mode.FORCED_OPEN, Mode.FORCED_CLOSED)), for_s=30.0)
        elif chance < 0.35:
            self._clock.step_wall(self._one_of((-3600.0, 3600.0, 1e6)))
        else:
            engine.inject(Fault(self._one_of(FAULTS), int(self._rng() * 20)))

    # --- rest ---

    async def _rest(self, hour: int) -> None:
        """The clients pause. A circuit that gave up is given back, as a person would."""
        until_s = self._clock.monotonic_s() + REST_S
        while self._clients and self._clock.monotonic_s() < until_s:
            await asyncio.wait(self._clients, timeout=until_s - self._clock.monotonic_s())
        await asyncio.sleep(30.0)
        seen = self._scheduler.snapshot()
        self._check(not self._clients, f"hour {hour}: {len(self._clients)} clients wait for ever")
        for number, fate in self._fates.items():
            told = " and ".join(outcome for outcome, _ in fate.told) or "nothing"
            what = f"request {number}: its client saw {fate.seen or 'nothing'}, and {told} was told: {fate}"
            self._check(fate.is_told_truly(), what)
        self._fates.clear()
        self._check(
            seen.running == seen.unread == sum(seen.waiting.values()) == 0, f"hour {hour}: something is held: {seen}"
        )
        tasks = len(asyncio.all_tasks())
        self._check(tasks <= self._calm_tasks, f"hour {hour}: {tasks} tasks at rest")
        for name, circuit in seen.circuits.items():
            if circuit.mode is Mode.HARD_OPEN:
                self._scheduler.force(name, None)

    def _hear(self, event: Event) -> None:
        report = self._report
        report.most_tasks = max(report.most_tasks, len(self._clients))
        if isinstance(event, RequestFinished):
            report.outcomes[event.outcome] += 1
            self._tell(event.request, event.outcome, event.tokens)
        elif isinstance(event, RequestRejected):
            report.outcomes["rejected"] += 1
            self._tell(event.request, event.reason, -1)
        report.moved += isinstance(event, StreamMoved)
        report.levels += isinstance(event, AdmissionChanged)
        report.circuits += event.name.startswith("circuit.") and "canary" not in event.name

    def _tell(self, number: int, outcome: str, tokens: int) -> None:
        fate = self._fates.get(number)
        self._check(fate is not None, f"request {number}: {outcome} was told of it at another time")
        if fate:
            fate.told.append((outcome, tokens))

    def _check(self, is_held: bool, what: str) -> None:
        if not is_held and len(self._report.faults_found) < 20:
            self._report.faults_found.append(what)

    def _one_of(self, things: Sequence[T]) -> T:
        return things[int(self._rng() * len(things))]
