"""What is asked of two engines: copies that race, calls that are repeated. Virtual time."""

import asyncio
from collections.abc import Sequence

import pytest
from scheduling import PROMPT, TEN, WHOLE, World, collect, in_world

from kensho.base.errors import ConfigError, DeadlineMissed, EngineError, WrongNumbers
from kensho.base.events import RequestFinished, RequestRejected
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.resilience.circuit import BreakerSettings
from kensho.testing.engine import Fault, ScriptedEngine

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
