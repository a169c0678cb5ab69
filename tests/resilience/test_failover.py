import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import ConfigError, EngineCrashed, EngineError, PoisonRequest
from kensho.base.events import Event, StreamMoved
from kensho.base.inference import Sampling
from kensho.resilience.admission import Priority
from kensho.resilience.circuit import BreakerSettings, Mode
from kensho.resilience.circuit_status import CircuitStatus
from kensho.resilience.failover import (
    FailoverSettings,
    Finish,
    GiveUp,
    GoOn,
    StreamProgress,
    StreamRecord,
    after_failure,
)
from kensho.resilience.guard import Canary
from kensho.resilience.scheduler import Scheduler, SchedulerSettings
from kensho.resilience.stream_life import Answer
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import Fault, ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

PROMPT = [3, 1, 4, 1, 5]
TEN = Sampling(max_tokens=10)
WHOLE = expected_ids(PROMPT, TEN)


def test_a_stream_goes_on_unless_it_is_complete_or_nothing_helps() -> None:
    assert after_failure(missing=1, moves=3, max_moves=3, may_repeat=True) == GoOn()
    assert after_failure(missing=0, moves=9, max_moves=3, may_repeat=False) == Finish()
    assert isinstance(after_failure(missing=1, moves=4, max_moves=3, may_repeat=True), GiveUp)
    assert isinstance(after_failure(missing=1, moves=1, max_moves=3, may_repeat=False), GiveUp)


class World:
    """Two scripted engines behind a scheduler, on virtual time."""

    def __init__(self, *, clock: VirtualClock, failover: FailoverSettings, breaker: BreakerSettings) -> None:
        self.clock = clock
        self.events: list[Event] = []
        self.engines = [ScriptedEngine("primary"), ScriptedEngine("standby")]
        self.answer: Answer | None = None
        self.scheduler = Scheduler(
            *self.engines,
            model="m",
            version="1",
            tier_of=str,
            canary=Canary([9], expected_ids([9], Sampling(max_tokens=2))),
            settings=SchedulerSettings(failover=failover, breaker=breaker),
            clock=clock,
            rng=lambda: 0.5,
            emit=self.events.append,
        )

    def circuit(self) -> CircuitStatus:
        return self.scheduler.snapshot().circuits["primary"]

    def stream(self, sampling: Sampling = TEN, priority: Priority = Priority.NORMAL) -> AsyncGenerator[int, None]:
        self.answer = self.scheduler.submit(PROMPT, sampling, priority=priority)
        return self.answer.__aiter__()

    @property
    def record(self) -> StreamRecord:
        assert self.answer
        return self.answer.record

    async def collect(self, sampling: Sampling = TEN, priority: Priority = Priority.NORMAL) -> list[int]:
        return [token async for token in self.stream(sampling, priority)]

    def moves(self) -> list[StreamMoved]:
        return [event for event in self.events if isinstance(event, StreamMoved)]


def in_world(use: Any, *, failover: FailoverSettings | None = None, breaker: BreakerSettings | None = None) -> Any:
    async def main() -> Any:
        world = World(
            clock=clock, failover=failover or FailoverSettings(), breaker=breaker or BreakerSettings(ramp_s=0.0)
        )
        async with world.scheduler:
            await asyncio.sleep(1.0)
            result = await use(world)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    clock = VirtualClock()
    return run_virtual(main(), clock=clock)


FAULT = st.one_of(
    st.none(), st.builds(Fault, st.sampled_from(["fail", "hang", "slow", "crash", "nan"]), st.integers(0, 11))
)


@settings(max_examples=60, deadline=None)
@given(
    primary=st.lists(FAULT, max_size=4),
    standby=st.lists(FAULT, max_size=4),
    pauses=st.lists(st.sampled_from([0.0, 0.5]), max_size=10),
)
def test_for_any_schedule_of_failures_the_reader_sees_the_undisturbed_ids(
    primary: list[Fault | None], standby: list[Fault | None], pauses: list[float]
) -> None:
    """Or, when both engines are gone, a prefix of them and an EngineError; never anything else."""

    async def use(world: World) -> None:
        world.engines[0].inject(*primary)
        world.engines[1].inject(*standby)
        for _ in range(3):
            got: list[int] = []
            try:
                async for token in world.stream():
                    got.append(token)
                    await asyncio.sleep(pauses[len(got) - 1] if len(got) <= len(pauses) else 0.0)
            except (EngineError, PoisonRequest):
                assert got == WHOLE[: len(got)]
            else:
                assert got == WHOLE
            assert world.record.tokens == len(got)
            assert world.scheduler.snapshot().running == 0
            await asyncio.sleep(30.0)

    in_world(use)


@pytest.mark.parametrize("at_token", range(10))
def test_a_crash_at_any_token_costs_one_move_and_one_prefill(at_token: int) -> None:
    async def use(world: World) -> None:
        world.engines[0].inject(Fault("crash", at_token))
        assert await world.collect() == WHOLE
        (moved,) = world.moves()
        assert (moved.from_engine, moved.to_engine, moved.accepted) == ("primary", "standby", at_token)
        assert moved.gap_ms == pytest.approx((0.02 + 0.01) * 1e3 + (20 if at_token == 0 else 0), abs=0.01)
        record = world.record
        assert (record.engine, record.tokens, record.failovers) == ("standby", 10, 1)
        assert record.gap_ms == moved.gap_ms

    in_world(use)


@pytest.mark.parametrize(("last_s", "rate"), [(1.0001, 0.0), (1.009, 0.0), (1.011, 9 / 0.011), (2.0, 9.0)])
def test_tokens_that_were_read_at_once_have_no_pace(last_s: float, rate: float) -> None:
    progress = StreamProgress(0.0)
    for number in range(10):
        progress.token_made("primary", 1.0 + number / 9 * (last_s - 1.0))
    assert progress.record.tokens_per_second == pytest.approx(rate)


def test_an_undisturbed_stream_measures_itself() -> None:
    async def use(world: World) -> None:
        assert await world.collect() == WHOLE
        record = world.record
        assert (record.engine, record.tokens, record.failovers, record.gap_ms) == ("primary", 10, 0, 0.0)
        assert record.first_token_ms == pytest.approx(30.0)
        assert record.tokens_per_second == pytest.approx(100.0)
        assert world.moves() == []

    in_world(use)


def test_a_hang_is_ended_by_the_watch_and_the_reader_waits_no_longer_than_its_budget() -> None:
    async def use(world: World) -> None:
        world.engines[0].inject(Fault("hang", 4))
        assert await world.collect() == WHOLE
        (moved,) = world.moves()
        assert moved.reason == "engine_hung"
        assert moved.gap_ms == pytest.approx((0.5 + 0.03) * 1e3)
        assert world.engines[0].kills >= 1
        assert world.circuit().mode is not Mode.CLOSED

    in_world(use, failover=FailoverSettings(token_s=0.5))


def test_a_slow_reader_is_not_a_hung_engine() -> None:
    async def use(world: World) -> None:
        got = []
        async for token in world.stream():
            got.append(token)
            await asyncio.sleep(100.0)
        assert got == WHOLE
        assert world.engines[0].kills == 0

    in_world(use)


def test_wrong_numbers_in_mid_stream_keep_the_tokens_before_them() -> None:
    async def use(world: World) -> None:
        world.engines[0].inject(Fault("nan", 6))
        assert await world.collect() == WHOLE
        assert world.moves()[0].reason == "wrong_numbers"

    in_world(use)


def test_a_crash_after_the_last_token_is_no_reason_to_ask_another_engine() -> None:
    async def use(world: World) -> None:
        world.engines[0].inject(Fault("crash", 10))
        assert await world.collect() == WHOLE
        assert world.engines[1].streams == 0
        assert world.moves() == []

    in_world(use)


def test_a_crash_before_the_stop_id_ends_the_stream_on_the_other_engine() -> None:
    async def use(world: World) -> None:
        world.engines[0].inject(Fault("crash", 4))
        assert await world.collect(Sampling(max_tokens=10, stop_ids=(WHOLE[4],))) == WHOLE[:4]
        assert [moved.accepted for moved in world.moves()] == [4]

    in_world(use)


def test_without_any_engine_the_reader_is_told_which_ones_and_when() -> None:
    async def use(world: World) -> None:
        got = []
        with pytest.raises(EngineError) as caught:
            async for token in world.stream():
                got.append(token)
                if len(got) == 3:
                    for engine in world.engines:
                        engine.refuse_starts(9)
                        engine.die()
        assert got == WHOLE[:3]
        assert "primary is HARD_OPEN" in caught.value.message
        assert "standby is HARD_OPEN" in caught.value.message
        assert caught.value.advice
        assert isinstance(caught.value.__cause__, EngineCrashed)

    in_world(use)


def test_a_request_that_always_fails_is_given_up_after_a_bounded_number_of_moves() -> None:
    async def use(world: World) -> None:
        for engine in world.engines:
            engine.inject(*[Fault("fail", 0)] * 20)
        with pytest.raises(EngineError):
            await world.collect()
        assert world.engines[0].streams + world.engines[1].streams == 3

    in_world(use, failover=FailoverSettings(max_moves=2), breaker=BreakerSettings(failure_threshold=99))


def test_a_success_between_two_failures_keeps_the_circuit_closed() -> None:
    async def use(world: World) -> None:
        world.engines[0].inject(*[Fault("nan", 0), None] * 5)
        for _ in range(10):
            assert await world.collect() == WHOLE
        seen = world.circuit()
        assert (seen.mode, seen.counters.successes, seen.counters.failures) == (Mode.CLOSED, 5, 5)

    in_world(use)


def test_a_reader_that_leaves_is_not_the_engines_failure() -> None:
    async def use(world: World) -> None:
        before = world.circuit().counters.cancelled
        for _ in range(10):
            async with aclosing(world.stream()) as ids:
                assert await anext(ids) == WHOLE[0]
        seen = world.circuit()
        assert (seen.mode, seen.counters.cancelled - before, seen.counters.failures) == (Mode.CLOSED, 10, 0)
        assert world.scheduler.snapshot().running == 0

    in_world(use)


def test_a_request_that_no_engine_could_answer_is_not_the_engines_failure() -> None:
    class Picky(ScriptedEngine):
        async def generate(self, *_: Any) -> AsyncGenerator[int, None]:
            raise ConfigError("the prompt is longer than the context")
            yield 0

    async def use(world: World) -> None:
        world.engines[0].__class__ = Picky
        with pytest.raises(ConfigError):
            await world.collect()
        assert world.circuit().counters.failures == 0

    in_world(use)
