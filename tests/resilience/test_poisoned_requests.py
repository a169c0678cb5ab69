"""A prompt that kills every engine that reads it: refused after the second, and nobody else is disturbed (issue 6)."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from kensho.base.errors import EngineCrashed, PoisonRequest
from kensho.base.events import Event, RequestFinished, RequestPoisoned
from kensho.base.inference import Sampling
from kensho.resilience.guard import Canary
from kensho.resilience.request import Lasting
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

DEADLY_PROMPT, TEN = (6, 6, 6), Sampling(max_tokens=10)
PROMPT = (3, 1, 4)


class Delicate(ScriptedEngine):
    """It does not survive one prompt. `signal`: what its process dies of."""

    def __init__(self, name: str, signal: str) -> None:
        super().__init__(name)
        self.signal = signal
        self.deaths = 0

    async def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        if tuple(prompt_ids) == DEADLY_PROMPT:
            self.deaths += 1
            self.die()
            raise EngineCrashed(f"the host of {self.name} is gone", signal=self.signal)
        async for token in super().generate(prompt_ids, accepted_ids, sampling):
            yield token


def in_world(use: Any, signal: str = "SIGSEGV", lasting: Lasting | None = None) -> tuple[list[Event], int]:
    async def main() -> None:
        async with Scheduler(
            *engines,
            model="m",
            version="1",
            tier_of=lambda _: "mapped",
            canary=Canary([9], expected_ids([9], Sampling(max_tokens=2))),
            settings=SchedulerSettings(),
            clock=clock,
            rng=lambda: 0.5,
            emit=events.append,
            lasting=lasting,
        ) as scheduler:
            await asyncio.sleep(1.0)
            await use(scheduler)

    clock, events = VirtualClock(), list[Event]()
    engines = [Delicate(name, signal) for name in ("primary", "standby")]
    run_virtual(main(), clock=clock)
    return events, sum(engine.deaths for engine in engines)


async def ask(scheduler: Scheduler, prompt: Sequence[int]) -> list[int]:
    return [token async for token in scheduler.submit(prompt, TEN)]


def test_it_is_refused_after_the_second_host_and_never_reaches_a_third() -> None:
    async def use(scheduler: Scheduler) -> None:
        for _ in range(5):
            with pytest.raises(PoisonRequest, match="3 tokens"):
                await ask(scheduler, DEADLY_PROMPT)
            await asyncio.sleep(1.0)
        assert await ask(scheduler, PROMPT) == expected_ids(PROMPT, TEN)

    events, deaths = in_world(use)
    assert deaths == 2
    (told,) = [event for event in events if isinstance(event, RequestPoisoned)]
    assert (told.model, told.prompt_tokens, told.hosts) == ("m", 3, 2)
    assert [event.outcome for event in events if isinstance(event, RequestFinished)] == ["failed"] * 5 + ["ok"]


def test_a_person_who_gives_a_circuit_back_lets_it_be_tried_again() -> None:
    async def use(scheduler: Scheduler) -> None:
        for _ in range(2):
            with pytest.raises(PoisonRequest):
                await ask(scheduler, DEADLY_PROMPT)
        await asyncio.sleep(1.0)
        scheduler.force("primary", None)
        with pytest.raises(PoisonRequest):
            await ask(scheduler, DEADLY_PROMPT)

    assert in_world(use)[1] == 4


def test_the_verdict_goes_on_with_the_engines_that_follow() -> None:
    async def use(scheduler: Scheduler) -> None:
        with pytest.raises(PoisonRequest):
            await ask(scheduler, DEADLY_PROMPT)

    lasting = Lasting()
    assert in_world(use, lasting=lasting)[1] == 2
    events, deaths = in_world(use, lasting=lasting)
    assert deaths == 0, "another tier of the same version, say"
    assert [event.request for event in events if isinstance(event, RequestFinished)] == [2]


def test_hosts_that_were_killed_by_others_are_not_blamed_on_it() -> None:
    async def use(scheduler: Scheduler) -> None:
        with pytest.raises(Exception, match="no answer") as caught:
            await ask(scheduler, DEADLY_PROMPT)
        assert not isinstance(caught.value, PoisonRequest)

    events, deaths = in_world(use, signal="SIGKILL")
    assert deaths > 2
    assert not [event for event in events if isinstance(event, RequestPoisoned)]
