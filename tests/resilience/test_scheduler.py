import asyncio
import random
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any

import pytest

from kensho.base.errors import ConfigError, DeadlineMissed, EngineError, Overloaded, PoisonRequest, WrongNumbers
from kensho.base.events import (
    AdmissionChanged,
    CanaryFinished,
    CircuitChanged,
    Event,
    RequestFinished,
    RequestRejected,
    StreamMoved,
)
from kensho.base.inference import Sampling
from kensho.resilience.admission import AdmissionSettings, Level, Priority
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.guard import Canary
from kensho.resilience.life import Answer
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import Fault, ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

PROMPT = [3, 1, 4, 1, 5]
TEN = Sampling(max_tokens=10)
WHOLE = expected_ids(PROMPT, TEN)
CANARY_IDS = expected_ids([9], Sampling(max_tokens=2))


class World:
    def __init__(self, clock: VirtualClock, settings: SchedulerSettings, canary: Canary, engines: int) -> None:
        self.clock = clock
        self.events: list[Event] = []
        self.primary = ScriptedEngine("primary")
        self.standby = ScriptedEngine("standby")
        self.scheduler = Scheduler(
            self.primary,
            self.standby if engines == 2 else None,
            model="m",
            version="1",
            tier_of=lambda engine: f"tier of {engine}",
            canary=canary,
            settings=settings,
            clock=clock,
            rng=lambda: 0.5,
            emit=self.events.append,
        )

    async def ask(self, *, prompt: Sequence[int] = PROMPT, sampling: Sampling = TEN, **how: Any) -> list[int]:
        answer = self.scheduler.submit(prompt, sampling, **how)
        async with aclosing(answer):
            return [token async for token in answer]

    def of(self, *kinds: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    def changes(self, engine: str = "primary") -> list[str]:
        seen = [event for event in self.of(CircuitChanged) if event.engine == engine]
        return [event.from_state for event in seen[:1]] + [event.to_state for event in seen]


def in_world(
    use: Any,
    *,
    canary: Canary | None = None,
    engines: int = 2,
    prepare: Any = None,
    before_s: float = 1.0,
    **settings: Any,
) -> World:
    async def main() -> None:
        if prepare:
            prepare(world)
        async with world.scheduler:
            await asyncio.sleep(before_s)
            await use(world)
        assert_nothing_is_left()
        assert not world.primary.is_alive
        assert not world.standby.is_alive

    clock = VirtualClock()
    settings.setdefault("breaker", BreakerSettings(ramp_s=0.0))
    world = World(clock, SchedulerSettings(**settings), canary or Canary([9], CANARY_IDS), engines)
    run_virtual(main(), clock=clock)
    return world


def assert_nothing_is_left() -> None:
    assert asyncio.all_tasks() == {asyncio.current_task()}
    loop: Any = asyncio.get_running_loop()
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


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


def test_a_standby_on_demand_is_loaded_by_the_first_failover_and_not_before() -> None:
    async def use(world: World) -> None:
        await world.ask()
        assert not world.standby.is_alive
        assert world.scheduler.snapshot().slots == 1
        world.primary.inject(Fault("crash", 4))
        assert await world.ask() == WHOLE
        assert world.standby.starts == 1

    world = in_world(use, standby="on_demand")
    (moved,) = world.of(StreamMoved)
    assert moved.gap_ms == pytest.approx(100.0 + 30.0)


def test_a_hot_standby_takes_what_the_primary_has_no_slot_for() -> None:
    async def use(world: World) -> None:
        assert world.scheduler.snapshot().slots == 2
        assert await asyncio.gather(*[world.ask() for _ in range(4)]) == [WHOLE] * 4

    world = in_world(use)
    assert sorted(event.engine for event in world.of(RequestFinished)) == ["primary", "primary", "standby", "standby"]


def test_a_primary_that_does_not_start_leaves_the_work_to_the_standby_and_comes_later() -> None:
    async def use(world: World) -> None:
        assert await world.ask() == WHOLE
        await asyncio.sleep(30.0)
        assert await world.ask() == WHOLE

    world = in_world(use, prepare=lambda world: world.primary.refuse_starts(2))
    assert [event.engine for event in world.of(RequestFinished)] == ["standby", "primary"]


def test_without_any_engine_the_scheduler_does_not_open() -> None:
    def prepare(world: World) -> None:
        world.primary.refuse_starts(1)
        world.standby.refuse_starts(1)

    async def use(_: World) -> None:
        raise AssertionError("must not be reached")

    with pytest.raises(EngineError, match="no engine of model 'm' starts"):
        in_world(use, prepare=prepare)


def test_one_engine_alone_that_cannot_come_back_is_told_with_what_to_do() -> None:
    async def use(world: World) -> None:
        assert await world.ask() == WHOLE
        world.primary.inject(Fault("crash", 3))
        world.primary.refuse_starts(10)
        with pytest.raises(EngineError) as caught:
            await world.ask()
        assert "primary is HARD_OPEN" in caught.value.message
        assert caught.value.advice

    in_world(use, engines=1)


def test_one_engine_alone_goes_on_with_its_stream_when_it_is_back_within_seconds() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("crash", 3))
        assert await world.ask() == WHOLE

    world = in_world(use, engines=1)
    (finished,) = world.of(RequestFinished)
    assert (finished.outcome, finished.failovers) == ("ok", 1)
    assert 100.0 < finished.gap_ms < 500.0  # a start and two canaries


def test_a_named_engine_that_is_loaded_on_demand_is_loaded() -> None:
    async def use(world: World) -> None:
        assert not world.standby.is_alive
        assert await world.ask(engine="standby") == WHOLE
        assert (world.standby.starts, world.primary.starts) == (1, 1)

    in_world(use, standby="on_demand")


def test_a_named_engine_answers_alone_and_an_unknown_one_is_refused() -> None:
    async def use(world: World) -> None:
        assert await world.ask(engine="standby") == WHOLE
        with pytest.raises(ConfigError):
            world.scheduler.submit(PROMPT, TEN, engine="gpu")
        with pytest.raises(ConfigError):
            world.scheduler.force("gpu", None)

    world = in_world(use)
    assert [event.engine for event in world.of(RequestFinished)] == ["standby"]


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


@pytest.mark.parametrize("standby", ["hot", "on_demand"])
def test_an_unknown_canary_is_learned_once_and_then_proves_a_restarted_engine(standby: Any) -> None:
    canary = Canary([9])

    async def use(world: World) -> None:
        await asyncio.sleep(1.0)
        assert canary.is_known
        world.primary.inject(Fault("crash", 0), Fault("wrong", 0))
        await world.ask()
        await asyncio.sleep(1.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.OPEN

    world = in_world(use, canary=canary, standby=standby)
    assert world.standby.streams == (2 if standby == "hot" else 1)


def test_learning_the_canary_never_stands_before_a_request() -> None:
    async def use(world: World) -> None:
        reading = asyncio.create_task(world.ask(sampling=Sampling(max_tokens=300)))
        await asyncio.sleep(2.5)
        assert world.primary.streams == 1
        await reading
        await asyncio.sleep(1.5)
        assert world.primary.streams == 2

    in_world(use, canary=Canary([9]), standby="on_demand", before_s=0.5)


# --- admission ---


def test_the_important_request_goes_first() -> None:
    async def use(world: World) -> None:
        order = [Priority.LOW, Priority.LOW, Priority.NORMAL, Priority.CRITICAL, Priority.HIGH]
        asks = [asyncio.create_task(world.ask(priority=priority)) for priority in order]
        await asyncio.gather(*asks)

    world = in_world(use, engines=1)
    assert [event.priority for event in world.of(RequestFinished)] == ["critical", "high", "normal", "low", "low"]


def test_a_full_queue_refuses_with_reason_and_time_and_says_that_it_is_saturated() -> None:
    async def use(world: World) -> None:
        results = await asyncio.gather(*[world.ask(priority=Priority.HIGH) for _ in range(9)], return_exceptions=True)
        refused = [result for result in results if isinstance(result, Overloaded)]
        assert len(refused) == 6
        assert all(error.facts["retry_after_s"] for error in refused)
        assert world.scheduler.snapshot().level is Level.SATURATED
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.CLOSED
        await asyncio.sleep(12.0)

    world = in_world(use, engines=1, admission=AdmissionSettings(bound=2, bound_least=2, bound_most=2))
    assert [event.reason for event in world.of(RequestRejected)] == ["full"] * 6
    assert [event.to_level for event in world.of(AdmissionChanged)] == ["SATURATED", "NORMAL"]
    assert len(world.of(RequestFinished)) == 3


def test_a_deadline_that_passes_in_the_queue_is_told_at_once() -> None:
    async def use(world: World) -> None:
        long = asyncio.create_task(world.ask(sampling=Sampling(max_tokens=1000)))
        await asyncio.sleep(0.1)
        began = world.clock.monotonic_s()
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=began + 2.0)
        # The first token would take what the first one took, so it is known that long before.
        assert world.clock.monotonic_s() == pytest.approx(began + 2.0 - 0.03, abs=0.002)
        await long

    in_world(use, engines=1)


def test_a_first_token_that_misses_its_deadline_is_cancelled_and_blames_nobody() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("slow"))
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=world.clock.monotonic_s() + 0.1)
        assert world.scheduler.snapshot().circuits["primary"].counters.failures == 0
        assert world.scheduler.snapshot().running == 0
        assert await world.ask() == WHOLE

    in_world(use, engines=1)


def test_a_deadline_in_the_past_is_refused_without_touching_an_engine() -> None:
    async def use(world: World) -> None:
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=world.clock.monotonic_s() - 1.0)
        assert world.primary.streams == 0

    in_world(use)


def test_cancelled_requests_free_their_places_and_slots_at_once() -> None:
    async def use(world: World) -> None:
        running = asyncio.create_task(world.ask(sampling=Sampling(max_tokens=10_000)))
        await asyncio.sleep(0.1)
        waiting = [asyncio.create_task(world.ask(priority=Priority.LOW)) for _ in range(100)]
        await asyncio.sleep(0.1)
        assert world.scheduler.snapshot().waiting[Priority.LOW] == 100
        for task in (*waiting, running):
            task.cancel()
        await asyncio.gather(running, *waiting, return_exceptions=True)
        seen = world.scheduler.snapshot()
        assert (seen.running, sum(seen.waiting.values())) == (0, 0)
        assert await world.ask() == WHOLE

    world = in_world(use, engines=1)
    outcomes = [event.outcome for event in world.of(RequestFinished)]
    assert (outcomes.count("cancelled"), outcomes.count("ok")) == (101, 1)


def test_an_answer_that_nobody_reads_costs_nothing() -> None:
    async def use(world: World) -> None:
        answers: list[Answer] = [world.scheduler.submit(PROMPT, TEN) for _ in range(1000)]
        assert await world.ask() == WHOLE
        for answer in answers:
            await answer.aclose()
        assert sum(world.scheduler.snapshot().waiting.values()) == 0

    in_world(use)


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


def test_a_first_token_that_a_failover_delayed_says_nothing_about_the_next_one() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("hang", 0))
        assert await world.ask() == WHOLE
        assert await world.ask(deadline_s=world.clock.monotonic_s() + 2.0) == WHOLE

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["ok", "ok"]
    assert world.of(StreamMoved)[0].gap_ms > 8000.0


def test_a_stream_that_a_forced_circuit_drains_is_not_disturbed_by_the_way_back() -> None:
    async def use(world: World) -> None:
        sampling = Sampling(max_tokens=1000)
        draining = asyncio.create_task(world.ask(sampling=sampling))
        await asyncio.sleep(1.0)
        world.scheduler.force("primary", Mode.FORCED_OPEN)
        world.scheduler.force("primary", None)
        await asyncio.sleep(8.0)
        assert world.scheduler.snapshot().circuits["primary"].mode is Mode.RESTARTING
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


# --- making way ---

LONG = Sampling(max_tokens=300)


def test_a_critical_request_waits_for_a_step_and_not_for_a_low_stream() -> None:
    async def use(world: World) -> None:
        low = asyncio.create_task(world.ask(priority=Priority.LOW, sampling=LONG))
        await asyncio.sleep(1.0)
        answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
        assert [token async for token in answer] == WHOLE
        assert answer.record.first_token_ms == pytest.approx(30.0, abs=10.1)  # its own prefill, and the rest of a step
        assert await low == expected_ids(PROMPT, LONG)

    world = in_world(use, engines=1)
    assert [event.priority for event in world.of(RequestFinished)] == ["critical", "low"]
    assert world.of(RequestFinished)[1].failovers == 0


def test_a_low_stream_that_is_cut_again_and_again_loses_and_repeats_nothing() -> None:
    async def use(world: World) -> None:
        answers = [world.scheduler.submit(PROMPT, LONG, priority=Priority.LOW) for _ in range(2)]
        lows = [asyncio.create_task(collect(answer)) for answer in answers]
        for _ in range(8):
            await asyncio.sleep(0.35)
            assert await world.ask(priority=Priority.CRITICAL) == WHOLE
        assert await asyncio.gather(*lows) == [expected_ids(PROMPT, LONG)] * 2
        assert sum(answer.record.pauses for answer in answers) >= 5

    in_world(use)


async def collect(answer: Answer) -> list[int]:
    return [token async for token in answer]


@pytest.mark.parametrize("priority", [Priority.HIGH, Priority.NORMAL])
def test_a_stream_of_any_class_gives_way_to_a_critical_request(priority: Priority) -> None:
    async def use(world: World) -> None:
        long = asyncio.create_task(world.ask(priority=priority, sampling=LONG))
        await asyncio.sleep(1.0)
        answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
        assert [token async for token in answer] == WHOLE
        assert answer.record.first_token_ms == pytest.approx(30.0, abs=10.1)
        assert await long == expected_ids(PROMPT, LONG)

    world = in_world(use, engines=1)
    assert [event.priority for event in world.of(RequestFinished)] == ["critical", priority.name.lower()]


@pytest.mark.parametrize("urgent", [Priority.HIGH, Priority.NORMAL])
def test_nobody_but_low_gives_way_to_one_who_is_not_critical(urgent: Priority) -> None:
    async def use(world: World) -> None:
        long = asyncio.create_task(world.ask(priority=Priority.NORMAL, sampling=LONG))
        await asyncio.sleep(1.0)
        await world.ask(priority=urgent)
        assert await long == expected_ids(PROMPT, LONG)

    world = in_world(use, engines=1)
    assert world.of(RequestFinished)[0].tokens == LONG.max_tokens


def test_a_critical_stream_gives_way_to_nobody() -> None:
    async def use(world: World) -> None:
        first = world.scheduler.submit(PROMPT, LONG, priority=Priority.CRITICAL)
        running = asyncio.create_task(collect(first))
        await asyncio.sleep(1.0)
        await world.ask(priority=Priority.CRITICAL)
        assert await running == expected_ids(PROMPT, LONG)
        assert first.record.pauses == 0

    in_world(use, engines=1)


@pytest.mark.parametrize(("slack_s", "pauses"), [(1.0, 0), (20.0, 1)])
def test_a_whole_answer_gives_way_only_if_it_is_in_time_all_the_same(slack_s: float, pauses: int) -> None:
    async def use(world: World) -> None:
        for _ in range(3):  # so that the times of a step and of an answer are known
            await world.ask(sampling=LONG)
        deadline_s = world.clock.monotonic_s() + 3.1 + slack_s  # 300 tokens of 10 ms
        whole = world.scheduler.submit(PROMPT, LONG, deadline_s=deadline_s, is_whole=True)
        running = asyncio.create_task(collect(whole))
        await asyncio.sleep(2.0)
        await world.ask(priority=Priority.CRITICAL)
        assert await running == expected_ids(PROMPT, LONG)
        assert whole.record.pauses == pauses
        assert world.clock.monotonic_s() <= deadline_s

    in_world(use, engines=1)


def test_a_stream_that_lost_its_engine_takes_that_of_a_low_one() -> None:
    async def use(world: World) -> None:
        high = asyncio.create_task(world.ask(priority=Priority.HIGH, sampling=LONG))
        await asyncio.sleep(0.5)
        low = asyncio.create_task(world.ask(priority=Priority.LOW, sampling=LONG))
        await asyncio.sleep(0.5)
        world.primary.die()
        assert await high == await low == expected_ids(PROMPT, LONG)

    world = in_world(use)
    (moved,) = world.of(StreamMoved)
    assert (moved.to_engine, moved.gap_ms) == ("standby", pytest.approx(35.0, abs=6.0))


def test_a_low_stream_that_cannot_go_on_waits_without_a_deadline() -> None:
    async def use(world: World) -> None:
        low = asyncio.create_task(world.ask(priority=Priority.LOW, sampling=LONG))
        await asyncio.sleep(1.0)
        for _ in range(3):
            assert len(await world.ask(priority=Priority.CRITICAL, sampling=Sampling(max_tokens=700))) == 700
        assert await low == expected_ids(PROMPT, LONG)

    in_world(use, engines=1)


# --- readers ---


def test_a_reader_who_does_not_read_keeps_no_engine_and_loses_nothing() -> None:
    async def use(world: World) -> None:
        answer = world.scheduler.submit(PROMPT, LONG)
        ids = answer.__aiter__()
        got = [await anext(ids)]
        await asyncio.sleep(60.0)
        seen = world.scheduler.snapshot()
        assert (seen.running, seen.unread) == (0, 1)
        assert await world.ask() == WHOLE
        got += [token async for token in ids]
        assert got == expected_ids(PROMPT, LONG)
        assert answer.record.pauses >= 1

    world = in_world(use, engines=1, unread_tokens=16)
    assert [event.outcome for event in world.of(RequestFinished)] == ["ok", "ok"]


def test_readers_who_never_come_back_are_bounded_and_disturb_nobody() -> None:
    async def use(world: World) -> None:
        streams = [world.scheduler.submit(PROMPT, LONG).__aiter__() for _ in range(20)]
        for ids in streams:
            await anext(ids)
        await asyncio.sleep(60.0)
        assert world.scheduler.snapshot().unread == 20
        assert await world.ask() == WHOLE
        for ids in streams:
            await ids.aclose()
        assert world.scheduler.snapshot().unread == 0

    world = in_world(use, unread_tokens=16)
    assert [event.outcome for event in world.of(RequestFinished)] == ["ok"] + ["cancelled"] * 20


def test_a_client_that_leaves_frees_its_slot_at_once() -> None:
    async def use(world: World) -> None:
        task = asyncio.create_task(world.ask(sampling=LONG))
        await asyncio.sleep(1.0)
        task.cancel()
        await asyncio.wait({task})
        assert world.scheduler.snapshot().running == 0
        began = world.clock.monotonic_s()
        await world.ask()
        assert world.clock.monotonic_s() - began == pytest.approx(0.12)

    in_world(use, engines=1)


def test_a_request_cancelled_before_its_task_began_has_one_outcome_too() -> None:
    async def use(world: World) -> None:
        task = asyncio.create_task(world.ask())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    world = in_world(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["cancelled"]


# --- doing it twice ---


def test_a_late_first_token_of_a_critical_request_is_asked_of_the_other_engine_too() -> None:
    async def use(world: World) -> None:
        for _ in range(25):
            await world.ask()
        world.primary.inject(Fault("slow", 0))
        answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
        assert await collect(answer) == WHOLE
        assert (answer.record.is_hedged, answer.record.engine) == (True, "standby")
        assert answer.record.first_token_ms == pytest.approx(3 * 30.0 + 30.0, abs=1.0)
        assert world.scheduler.snapshot().running == 0
        assert await world.ask() == WHOLE

    world = in_world(use)
    assert world.scheduler.snapshot().circuits["primary"].counters.failures == 0


def test_of_two_copies_the_first_engine_may_win_too() -> None:
    async def use(world: World) -> None:
        for _ in range(25):
            await world.ask()
        world.primary.inject(Fault("slow", 0))
        world.standby.inject(Fault("hang", 0))
        answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
        assert await collect(answer) == WHOLE
        assert (answer.record.is_hedged, answer.record.engine) == (True, "primary")

    in_world(use)


def test_an_engine_that_dies_during_the_race_leaves_it_to_the_other() -> None:
    async def use(world: World) -> None:
        for _ in range(25):
            await world.ask()
        world.primary.inject(Fault("hang", 0))
        asking = asyncio.create_task(world.ask(priority=Priority.CRITICAL))
        await asyncio.sleep(0.1)
        world.primary.die()
        assert await asking == WHOLE

    in_world(use)


def test_at_most_one_critical_request_in_twenty_runs_twice() -> None:
    async def use(world: World) -> None:
        for _ in range(25):
            await world.ask(sampling=Sampling(max_tokens=1))
        hedged = 0
        for _ in range(25):
            world.primary.inject(Fault("slow", 0))
            answer = world.scheduler.submit(PROMPT, TEN, priority=Priority.CRITICAL)
            assert await collect(answer) == WHOLE
            hedged += answer.record.is_hedged
            await asyncio.sleep(100.0)  # what was measured is forgotten, or slow would become the rule
            for _ in range(20):
                await world.ask(sampling=Sampling(max_tokens=1))
        assert 1 <= hedged <= 2

    in_world(use, breaker=BreakerSettings(ramp_s=0.0, slow_factor=1e9))


def test_calls_are_repeated_for_a_fifth_of_all_calls_at_most_while_the_circuit_is_closed() -> None:
    async def use(world: World) -> None:
        failed = 0
        for _ in range(100):
            world.primary.inject(Fault("fail", 0))
            try:
                await world.ask()
            except EngineError as error:
                assert "repeated" in error.message
                failed += 1
        assert failed == pytest.approx(75, abs=2)  # a burst of five, and a fifth of the others

    in_world(use, breaker=BreakerSettings(ramp_s=0.0, failure_threshold=10_000, min_calls=10_000))


# --- whole answers ---


def test_the_deadline_of_a_whole_answer_is_of_its_last_token() -> None:
    async def use(world: World) -> None:
        with pytest.raises(DeadlineMissed, match="was not complete"):
            await world.ask(deadline_s=world.clock.monotonic_s() + 0.1, is_whole=True, sampling=LONG)
        assert world.scheduler.snapshot().running == 0
        assert await world.ask(deadline_s=world.clock.monotonic_s() + 0.05) == WHOLE
        assert await world.ask(deadline_s=world.clock.monotonic_s() + 0.3, is_whole=True) == WHOLE

    in_world(use, engines=1)


def test_a_whole_answer_that_cannot_be_in_time_is_refused_before_an_engine_is_used() -> None:
    async def use(world: World) -> None:
        for _ in range(3):
            await world.ask(sampling=LONG)
        before = world.primary.streams
        with pytest.raises(DeadlineMissed, match="could not be answered"):
            await world.ask(deadline_s=world.clock.monotonic_s() + 2.0, is_whole=True, sampling=LONG)
        assert world.primary.streams == before
        # Answers have been shorter than they might be: what is usual counts, not what is allowed.
        for _ in range(30):
            await world.ask(sampling=TEN)
        assert await world.ask(deadline_s=world.clock.monotonic_s() + 4.0, is_whole=True, sampling=LONG)

    in_world(use, engines=1)


# --- bad input ---


@pytest.mark.parametrize("deadline", [float("nan"), float("-inf"), 0.0, -5.0])
def test_impossible_deadlines_are_refused_without_touching_an_engine(deadline: float) -> None:
    async def use(world: World) -> None:
        with pytest.raises(DeadlineMissed):
            await world.ask(deadline_s=deadline)
        assert world.primary.streams == 0
        assert await world.ask() == WHOLE

    in_world(use)


def test_hundreds_of_cancels_of_waiting_requests_leave_nothing() -> None:
    async def use(world: World) -> None:
        running = asyncio.create_task(world.ask(sampling=LONG))
        await asyncio.sleep(0.1)
        for _ in range(20):
            tasks = [asyncio.create_task(world.ask(priority=Priority.HIGH)) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert sum(world.scheduler.snapshot().waiting.values()) == 0
        assert await running == expected_ids(PROMPT, LONG)

    in_world(use, engines=1)


# --- calls that answer in one piece ---


class Thinking(ScriptedEngine):
    """Has logits too: a number for each id of the prompt. `breaks` are what the next calls raise."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.breaks: list[BaseException] = []
        self.asked = 0

    async def logits(self, prompt_ids: Sequence[int]) -> list[float]:
        self.asked += 1
        await asyncio.sleep(0.05)
        if self.breaks:
            raise self.breaks.pop(0)
        return [float(token) for token in prompt_ids]


def think(world: World) -> None:
    for engine in (world.primary, world.standby):
        engine.__class__ = Thinking
        engine.breaks, engine.asked = [], 0  # type: ignore[attr-defined]


def test_logits_are_asked_of_another_engine_once_if_the_first_fails() -> None:
    async def use(world: World) -> None:
        assert await world.scheduler.logits(PROMPT) == [3.0, 1.0, 4.0, 1.0, 5.0]
        world.primary.breaks = [WrongNumbers("nan")]
        assert await world.scheduler.logits(PROMPT) == [3.0, 1.0, 4.0, 1.0, 5.0]
        assert (world.primary.asked, world.standby.asked) == (2, 1)
        for engine in (world.primary, world.standby):
            engine.breaks = [EngineError("no")]
        with pytest.raises(EngineError, match="failed twice"):
            await world.scheduler.logits(PROMPT)
        assert world.scheduler.snapshot().running == 0

    world = in_world(use, prepare=think)
    assert [event.outcome for event in world.of(RequestFinished)] == ["ok", "ok", "failed"]


def test_logits_too_wait_their_turn_and_keep_their_deadline() -> None:
    async def use(world: World) -> None:
        with pytest.raises(DeadlineMissed):
            await world.scheduler.logits(PROMPT, deadline_s=world.clock.monotonic_s() + 0.01)
        with pytest.raises(DeadlineMissed):
            await world.scheduler.logits(PROMPT, deadline_s=world.clock.monotonic_s() - 1.0)
        with pytest.raises(ConfigError):
            await world.scheduler.logits(PROMPT, engine="gpu")
        assert world.scheduler.snapshot().running == 0
        assert world.scheduler.snapshot().circuits["primary"].counters.failures == 0

    world = in_world(use, prepare=think)
    assert [event.outcome for event in world.of(RequestFinished)] == ["deadline"]
    assert [event.reason for event in world.of(RequestRejected)] == ["deadline"]


def test_an_engine_without_logits_says_so_and_is_not_blamed() -> None:
    async def use(world: World) -> None:
        with pytest.raises(ConfigError, match="cannot give logits"):
            await world.scheduler.logits(PROMPT)
        assert world.scheduler.snapshot().circuits["primary"].counters.failures == 0
        assert await world.ask() == WHOLE

    in_world(use)
