"""The scheduler and its circuits: which engine answers, who returns when, and what an end leaves. Virtual time."""

import asyncio
import random
from contextlib import suppress

import pytest
from scheduling import CANARY_IDS, PROMPT, TEN, WHOLE, World, assert_nothing_is_left, in_world

from kensho.base.errors import EngineError, Overloaded, PoisonRequest
from kensho.base.events import (
    CanaryFinished,
    CircuitChanged,
    RequestFinished,
    RequestRejected,
    StreamMoved,
)
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.resilience.admission_settings import AdmissionSettings
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import Fault, ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual


def test_an_answer_comes_from_the_primary_with_its_record() -> None:
    async def use(world: World) -> None:
        answer = world.scheduler.submit(PROMPT, TEN)
        assert [token async for token in answer] == WHOLE
        assert (answer.record.engine, answer.record.tokens, answer.record.failovers) == ("primary", 10, 0)

    world = in_world(use)
    (finished,) = world.of(RequestFinished)
    assert (finished.outcome, finished.tier, finished.priority) == ("ok", "tier of primary", "normal")
    assert finished.first_token_ms == pytest.approx(30.0)


def test_after_a_kill_in_mid_stream_the_primary_returns_by_itself_proven_by_two_canaries() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("crash", 4))
        assert await world.ask() == WHOLE
        await asyncio.sleep(1.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED
        assert await world.ask() == WHOLE

    world = in_world(use)
    assert world.changes() == ["CLOSED", "RESTARTING", "HALF_OPEN", "CLOSED"]
    assert [event.outcome for event in world.of(CanaryFinished)] == ["passed", "passed"]
    assert [event.engine for event in world.of(RequestFinished)] == ["standby", "primary"]
    assert len(world.of(StreamMoved)) == 1
    assert all(event.reason and event.next_step for event in world.of(CircuitChanged))


def test_an_idle_death_is_noticed_before_the_next_request_is_sent_there() -> None:
    async def use(world: World) -> None:
        world.primary.die()
        assert await world.ask() == WHOLE
        await asyncio.sleep(1.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED

    world = in_world(use)
    assert [(event.engine, event.failovers) for event in world.of(RequestFinished)] == [("standby", 0)]


def test_engines_that_die_while_nobody_asks_are_mended_before_somebody_does() -> None:
    async def use(world: World) -> None:
        world.primary.die()
        world.standby.die()
        await asyncio.sleep(2.0)
        assert await world.ask() == WHOLE

    world = in_world(use)
    assert [(event.engine, event.failovers) for event in world.of(RequestFinished)] == [("primary", 0)]


def test_fifty_callers_at_half_open_reach_the_standby_and_only_a_canary_the_primary() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("crash", 0), Fault("hang", 0))
        await world.ask()
        await asyncio.sleep(0.5)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.HALF_OPEN
        before = world.primary.streams
        answers = await asyncio.gather(*[world.ask(priority=Priority.LOW) for _ in range(50)])
        assert all(answer == WHOLE for answer in answers)
        assert world.primary.streams == before

    world = in_world(use, admission=AdmissionSettings(pressured_share=1.0))
    assert {event.engine for event in world.of(RequestFinished)} == {"standby"}


def test_a_canary_that_hangs_is_killed_at_its_deadline_and_tried_again_later() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("crash", 0), Fault("hang", 0))
        await world.ask()
        await asyncio.sleep(4.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.HALF_OPEN
        await asyncio.sleep(2.0)
        seen = world.scheduler.snapshot().circuits["primary"]
        assert seen.mode is Mode.OPEN
        assert seen.leaves_in_s == pytest.approx(60.0, abs=2.0)
        await asyncio.sleep(62.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED

    world = in_world(use)
    assert world.changes() == ["CLOSED", "RESTARTING", "HALF_OPEN", "OPEN", "RESTARTING", "HALF_OPEN", "CLOSED"]


def test_a_primary_that_answers_something_else_stays_out() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("crash", 0), Fault("wrong", 0))
        await world.ask()
        await asyncio.sleep(1.0)
        seen = world.scheduler.snapshot().circuits["primary"]
        assert (seen.mode, "mismatch" in seen.reason) == (Mode.OPEN, True)

    in_world(use)


def test_a_start_loop_ends_and_a_person_can_begin_again() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("crash", 0))
        world.primary.refuse_starts(3)
        await world.ask()
        await asyncio.sleep(600.0)
        seen = world.scheduler.snapshot().circuits["primary"]
        assert seen.mode is Mode.HARD_OPEN
        assert seen.reason.startswith("start_loop")
        assert world.primary.starts == 4
        assert await world.ask() == WHOLE
        world.scheduler.force("primary", None)
        await asyncio.sleep(1.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED

    in_world(use)


def test_steps_of_the_wall_clock_change_nothing() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("crash", 0), Fault("hang", 0))
        await world.ask()
        await asyncio.sleep(10.0)
        world.clock.step_wall(-3600.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.OPEN
        world.clock.step_wall(7200.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.OPEN
        await asyncio.sleep(60.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED

    in_world(use)


def test_a_forced_circuit_obeys_until_it_is_given_back() -> None:
    async def use(world: World) -> None:
        world.scheduler.force("primary", Mode.FORCED_OPEN)
        await world.ask()
        world.scheduler.force("primary", None)
        await asyncio.sleep(1.0)
        await world.ask()

    world = in_world(use)
    assert [event.engine for event in world.of(RequestFinished)] == ["standby", "primary"]
    assert world.primary.starts == 1


def test_closing_ends_what_runs_and_refuses_what_waits() -> None:
    outcomes: list[object] = []

    async def read(world: World) -> None:
        try:
            await world.ask(sampling=Sampling(max_tokens=100_000))
        except EngineError as error:
            outcomes.append(error.message)

    async def main() -> None:
        async with world.scheduler:
            await asyncio.sleep(1.0)
            tasks = [asyncio.create_task(read(world)) for _ in range(5)]
            await asyncio.sleep(1.0)
        await asyncio.gather(*tasks)
        await world.scheduler.close()
        with pytest.raises(EngineError):
            await world.ask()
        assert_nothing_is_left()

    clock = VirtualClock()
    world = World(clock, SchedulerSettings(), Canary([9], CANARY_IDS), 2)
    run_virtual(main(), clock=clock)
    assert outcomes == ["model 'm' is being closed"] * 5


def test_closing_does_not_wait_for_a_standby_that_is_still_loading() -> None:
    async def main() -> None:
        world.standby = ScriptedEngine("standby", start_s=100.0)
        async with Scheduler(
            world.primary,
            world.standby,
            model="m",
            version="1",
            tier_of=str,
            canary=Canary([9]),
            settings=SchedulerSettings(),
            clock=clock,
            rng=lambda: 0.5,
            emit=world.events.append,
        ):
            await asyncio.sleep(1.0)
            began = clock.monotonic_s()
        assert clock.monotonic_s() - began < 1.0
        assert_nothing_is_left()

    clock = VirtualClock()
    world = World(clock, SchedulerSettings(), Canary([9]), 2)
    run_virtual(main(), clock=clock)


def test_a_stream_that_a_forced_circuit_drains_is_not_disturbed_by_the_way_back() -> None:
    async def use(world: World) -> None:
        sampling = Sampling(max_tokens=1000)
        draining = asyncio.create_task(world.ask(sampling=sampling))
        await asyncio.sleep(1.0)
        world.scheduler.force("primary", Mode.FORCED_OPEN)
        world.scheduler.force("primary", None)
        await asyncio.sleep(8.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.HALF_OPEN
        assert await draining == expected_ids(PROMPT, sampling)
        await asyncio.sleep(1.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED

    world = in_world(use)
    assert (world.primary.kills, world.of(StreamMoved)) == (0, [])


@pytest.mark.real
def test_hours_with_random_deaths_give_each_request_one_outcome_and_only_right_tokens() -> None:
    """A sample of the soak: two hours of virtual time, a request every ten seconds, every fifth meets a fault."""
    rng = random.Random(11)
    asked = 0

    async def use(world: World) -> None:
        nonlocal asked
        end_s = world.clock.monotonic_s() + 7200.0
        while world.clock.monotonic_s() < end_s:
            engine = rng.choice([world.primary, world.primary, world.standby])
            chance = rng.random()
            if chance < 0.05:
                engine.die()
            elif chance < 0.2:
                engine.inject(Fault(rng.choice(["crash", "hang", "nan", "fail", "slow"]), rng.randrange(12)))
            asked += 1
            prompt = [*PROMPT, asked]
            with suppress(EngineError, Overloaded, PoisonRequest):
                assert await world.ask(prompt=prompt, priority=rng.choice(list(Priority))) == expected_ids(prompt, TEN)
            await asyncio.sleep(rng.expovariate(0.1))

    world = in_world(use, breaker=BreakerSettings(max_failed_starts=50))
    finished, rejected = world.of(RequestFinished), world.of(RequestRejected)
    assert len(finished) + len(rejected) == asked > 500
    assert sum(event.outcome == "ok" for event in finished) > 0.95 * asked
    assert {event.to_state for event in world.of(CircuitChanged)} >= {"CLOSED", "OPEN", "HALF_OPEN", "RESTARTING"}


def test_a_prompt_that_killed_two_engines_is_not_tried_on_a_third_and_disturbs_nobody() -> None:
    async def use(world: World) -> None:
        deadly = [6, 6, 6]
        for engine in (world.primary, world.standby):
            engine.inject(Fault("crash", 2))
        for _ in range(2):
            with pytest.raises(PoisonRequest):
                await world.ask(prompt=deadly)
        assert world.primary.streams + world.standby.streams == 2
        await asyncio.sleep(1.0)
        assert await world.ask() == WHOLE

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["failed", "failed", "ok"]
