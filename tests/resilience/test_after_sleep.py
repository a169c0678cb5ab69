"""A laptop wakes up: the canary goes first, the user waits for it, and nothing looks like a failure."""

import asyncio

import pytest

from kensho.base.events import CanaryFinished, CircuitChanged, Event, StreamMoved
from kensho.base.inference import Sampling
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.resilience.surroundings import Surroundings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import Fault, ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

PROMPT, TEN = (3, 1, 4), Sampling(max_tokens=10)


@pytest.mark.parametrize("is_device_dead", [False, True])
def test_the_first_request_after_a_sleep_waits_for_a_canary_and_is_answered(is_device_dead: bool) -> None:
    clock, events, asleep = VirtualClock(), list[Event](), [100.0]
    primary, standby = ScriptedEngine("primary"), ScriptedEngine("standby")

    async def main() -> None:
        async with Scheduler(
            primary,
            standby,
            model="m",
            version="1",
            tier_of=lambda _: "mapped",
            canary=Canary([9], expected_ids([9], Sampling(max_tokens=2))),
            settings=SchedulerSettings(),
            clock=clock,
            rng=lambda: 0.01,
            emit=events.append,
            surroundings=Surroundings(boot_s=lambda: clock.monotonic_s() + asleep[0]),
        ) as scheduler:
            await asyncio.sleep(1.0)
            asleep[0] += 3600.0
            if is_device_dead:
                primary.inject(Fault("crash", 0))
            answer = scheduler.submit(PROMPT, TEN)
            assert [token async for token in answer] == expected_ids(PROMPT, TEN)
            assert answer.record.failovers == 0
            assert answer.record.engine == ("standby" if is_device_dead else "primary")

    run_virtual(main(), clock=clock)
    slept = [event for event in events if isinstance(event, CircuitChanged) and event.reason == "the machine slept"]
    assert {event.engine for event in slept} == {"primary", "standby"}
    assert [event for event in events if isinstance(event, CanaryFinished)]
    assert not [event for event in events if isinstance(event, StreamMoved)]
