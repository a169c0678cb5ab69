"""The GPU hangs for 300 s in virtual time: who touches it, and who waits (issue 6, proof table).

The figures of the design simulation are the bars: at most 7 requests on the hanging engine, none later than 2 s, and no
user's request as a probe. Arrivals are a Poisson stream with a seed; the standby takes over at three times the cost.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence

import pytest

from kensho.base.errors import KenshoError
from kensho.base.events import CircuitChanged, Event
from kensho.base.inference import Sampling
from kensho.resilience.circuit import Mode
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

HANG_S = 300.0
BEFORE_S, AFTER_S = 150.0, 250.0
PER_SECOND = 2.0
CANARY_PROMPT = (9,)
CANARY_IDS = expected_ids(CANARY_PROMPT, Sampling(max_tokens=2))


class Hanging(ScriptedEngine):
    """Between two moments nothing ever comes of it, restarted or not. Counts who tries."""

    def __init__(self, clock: VirtualClock, from_s: float, to_s: float) -> None:
        super().__init__("primary", token_s=0.005, prefill_s=0.02)
        self.clock = clock
        self.from_s, self.to_s = from_s, to_s
        self.users_touched: list[float] = []
        self.mode_at_users: set[Mode] = set()
        self.mode = lambda: Mode.CLOSED
        self.canaries_touched = 0

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        if tuple(prompt_ids) != CANARY_PROMPT:
            self.mode_at_users.add(self.mode())
        async for token in super().generate(prompt_ids, accepted_ids, sampling):
            if self.from_s <= self.clock.monotonic_s() < self.to_s:
                if tuple(prompt_ids) == CANARY_PROMPT:
                    self.canaries_touched += 1
                else:
                    self.users_touched.append(self.clock.monotonic_s())
                await self._died.wait()
                raise self._crashed()
            yield token


@pytest.mark.real
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_gpu_that_hangs_for_five_minutes_meets_few_requests_and_makes_nobody_late(seed: int) -> None:
    clock = VirtualClock()
    began_s = clock.monotonic_s() + BEFORE_S
    primary = Hanging(clock, began_s, began_s + HANG_S)
    standby = ScriptedEngine("standby", token_s=0.015, prefill_s=0.06)
    events: list[Event] = []
    rng = random.Random(seed)
    late: list[float] = []
    failed: list[str] = []
    engines: list[tuple[float, str]] = []

    async def ask(scheduler: Scheduler, number: int) -> None:
        sampling, asked_s = Sampling(max_tokens=8), clock.monotonic_s()
        prompt = (3, number % 900, 5)
        answer = scheduler.submit(prompt, sampling)
        try:
            got = [token async for token in answer]
        except KenshoError as error:
            failed.append(str(error))
            return
        assert got == expected_ids(prompt, sampling)
        engines.append((asked_s, answer.record.engine))
        if clock.monotonic_s() - asked_s > 2.0:
            late.append(clock.monotonic_s() - asked_s)

    async def main() -> None:
        scheduler = Scheduler(
            primary,
            standby,
            model="m",
            version="1",
            tier_of=lambda _: "mapped",
            canary=Canary(CANARY_PROMPT, CANARY_IDS),
            settings=SchedulerSettings(),
            clock=clock,
            rng=rng.random,
            emit=events.append,
        )
        primary.mode = lambda: scheduler.snapshot().circuits["primary"].mode
        async with scheduler, asyncio.TaskGroup() as requests:
            end_s, number = clock.monotonic_s() + BEFORE_S + HANG_S + AFTER_S, 0
            while clock.monotonic_s() < end_s:
                await asyncio.sleep(rng.expovariate(PER_SECOND))
                number += 1
                requests.create_task(ask(scheduler, number))
            assert primary.mode() is Mode.CLOSED, "it comes back by itself"

    run_virtual(main(), clock=clock)
    assert len(primary.users_touched) <= 7, primary.users_touched
    assert (late, failed) == ([], [])
    during = [engine for at_s, engine in engines if began_s + 2.0 <= at_s < began_s + HANG_S]
    assert set(during) == {"standby"}
    assert primary.mode_at_users == {Mode.CLOSED}, "a user's request was a probe"
    assert 1 <= primary.canaries_touched <= 5
    assert [event.to_state for event in events if isinstance(event, CircuitChanged)][-1] == "CLOSED"
