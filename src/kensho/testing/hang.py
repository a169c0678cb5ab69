"""A GPU hangs for five minutes while requests go on coming, in virtual time: who touches it, and who waits.

    seen = play_hang(Hang(), ask_kensho, seed=1)
    seen.touched, seen.late, seen.p99_s

The primary answers in 50 ms, the standby in 100, one request at a time, so that the standby alone can do ten requests a
second. While the primary hangs it takes requests and nothing comes of them; whatever hangs goes on when it is over,
unless it was killed or given up. A contestant is asked for each request of a Poisson stream, and has both engines.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from kensho.base.clock import Seconds
from kensho.base.events import Event
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, field
from kensho.resilience.circuit import Mode
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual
from kensho.testing.play import p99

LATE_S: Seconds = 2.0
TOKENS = Sampling(max_tokens=8)
CANARY_PROMPT = (9,)
_CANARY = Sampling(max_tokens=2)


class Hang(Struct):
    """The ten minutes of the design simulation."""

    per_s: float = 8.0
    begins_s: Seconds = 50.0
    ends_s: Seconds = 350.0
    until_s: Seconds = 600.0


class HangingEngine(ScriptedEngine):
    """Between two moments nothing comes of it, restarted or not. Counts who tries."""

    def __init__(self, clock: VirtualClock, begins_s: Seconds, ends_s: Seconds) -> None:
        super().__init__("primary", token_s=0.005, prefill_s=0.01)
        self._clock = clock
        self._begins_s = begins_s
        self._ends_s = ends_s
        self.touched = 0
        """Requests of users that were with it while it hung, in it or in line for it."""
        self.canaries = 0
        self.probes = 0
        """Requests of users that came to it while its circuit did not trust it."""
        self.is_trusted: Callable[[], bool] = lambda: True

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        is_canary = tuple(prompt_ids) == CANARY_PROMPT
        self.probes += not is_canary and not self.is_trusted()
        has_met = self._is_hung
        self._count(is_canary, has_met)
        async for token in super().generate(prompt_ids, accepted_ids, sampling):
            if self._is_hung:
                self._count(is_canary, not has_met)
                has_met = True
                await self._pass_time(self._ends_s - self._clock.monotonic_s())
            yield token

    @property
    def _is_hung(self) -> bool:
        return self._begins_s <= self._clock.monotonic_s() < self._ends_s

    def _count(self, is_canary: bool, is_new: bool) -> None:
        self.canaries += is_new and is_canary
        self.touched += is_new and not is_canary


class Answered(Struct):
    """By the moments of the trace."""

    came_s: Seconds
    took_s: Seconds
    engine: str


class Seen(Struct, kw_only=True):
    touched: int
    probes: int
    canaries: int
    came: int
    answered: list[Answered] = field(factory=list)
    failed: list[str] = field(factory=list)
    """What those were told who got no answer."""
    hang: Hang = Hang()

    @property
    def late(self) -> int:
        """Answers that took longer than two seconds."""
        return sum(one.took_s > LATE_S for one in self.answered)

    @property
    def p99_s(self) -> Seconds:
        """Of requests that came during the hang."""
        return p99(one.took_s for one in self._between(self.hang.begins_s, self.hang.ends_s))

    @property
    def back_after_s(self) -> Seconds:
        """From the end of the hang until the primary answered somebody; infinite if it did not."""
        later = [one.came_s for one in self.answered if one.came_s >= self.hang.ends_s and one.engine == "primary"]
        return min(later, default=float("inf")) - self.hang.ends_s

    def engines(self, from_s: Seconds, to_s: Seconds) -> set[str]:
        """Who answered those who came between two moments."""
        return {one.engine for one in self._between(from_s, to_s)}

    def _between(self, from_s: Seconds, to_s: Seconds) -> list[Answered]:
        return [one for one in self.answered if from_s <= one.came_s < to_s]


Ask = Callable[[Sequence[int]], Awaitable[tuple[list[int], str]]]
"""One request by its prompt: the tokens, and the name of the engine that made the last one. May raise."""
Contestant = Callable[[HangingEngine, ScriptedEngine, VirtualClock], AbstractAsyncContextManager[Ask]]


def play_hang(hang: Hang, contestant: Contestant, *, seed: int, clock: VirtualClock | None = None) -> Seen:
    """Ten minutes of requests. `clock`: for contestants who read another one. Deterministic.

    Raises AssertionError if an answer is not what an undisturbed engine would have said.
    """
    on = clock or VirtualClock()
    return run_virtual(_play(hang, contestant, random.Random(seed), on), clock=on)  # noqa: S311  # a load


async def _play(hang: Hang, contestant: Contestant, rng: random.Random, clock: VirtualClock) -> Seen:
    began_s = clock.monotonic_s() + 1.0  # both engines are up by then
    primary = HangingEngine(clock, began_s + hang.begins_s, began_s + hang.ends_s)
    standby = ScriptedEngine("standby", token_s=0.01, prefill_s=0.02)
    answered: list[Answered] = []
    failed: list[str] = []

    async def one(ask: Ask, prompt: tuple[int, ...]) -> None:
        came_s = clock.monotonic_s()
        try:
            ids, engine = await ask(prompt)
        except Exception as error:  # whatever a contestant's word for a refusal is
            failed.append(f"{type(error).__name__}: {error}")
            return
        if ids != expected_ids(prompt, TOKENS):
            raise AssertionError(f"{engine} answered {ids}")
        answered.append(Answered(came_s - began_s, clock.monotonic_s() - came_s, engine))

    number = 0
    async with contestant(primary, standby, clock) as ask, asyncio.TaskGroup() as requests:
        await asyncio.sleep(began_s - clock.monotonic_s())
        while clock.monotonic_s() < began_s + hang.until_s:
            await asyncio.sleep(rng.expovariate(hang.per_s))
            number += 1
            requests.create_task(one(ask, (3, number % 900, number // 900, 5)))
    return Seen(
        touched=primary.touched,
        probes=primary.probes,
        canaries=primary.canaries,
        came=number,
        answered=answered,
        failed=failed,
        hang=hang,
    )


def kensho(emit: Callable[[Event], None] = lambda _: None) -> Contestant:
    """The scheduler with its default settings and deadlines."""

    @asynccontextmanager
    async def contestant(primary: HangingEngine, standby: ScriptedEngine, clock: VirtualClock) -> AsyncIterator[Ask]:
        scheduler = Scheduler(
            primary,
            standby,
            model="m",
            version="1",
            tier_of=lambda _: "",
            canary=Canary(CANARY_PROMPT, expected_ids(CANARY_PROMPT, _CANARY)),
            settings=SchedulerSettings(),
            clock=clock,
            rng=random.Random(0).random,  # noqa: S311  # jitter
            emit=emit,
        )

        async def ask(prompt_ids: Sequence[int]) -> tuple[list[int], str]:
            answer = scheduler.submit(prompt_ids, TOKENS)
            return [token async for token in answer], answer.record.engine

        primary.is_trusted = lambda: scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED
        async with scheduler:
            yield ask

    return contestant


def standby_alone() -> Contestant:
    """The floor: the standby alone serves everybody, from the beginning."""

    @asynccontextmanager
    async def contestant(_: HangingEngine, standby: ScriptedEngine, clock: VirtualClock) -> AsyncIterator[Ask]:
        await standby.start()

        async def ask(prompt_ids: Sequence[int]) -> tuple[list[int], str]:
            return [token async for token in standby.generate(prompt_ids, (), TOKENS)], standby.name

        yield ask

    return contestant
