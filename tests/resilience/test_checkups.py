"""Engines that seem healthy are asked their canary now and then, and never before a user. Virtual time."""

import asyncio
from typing import Any

import pytest
from scheduling import CANARY_IDS, PROMPT, WHOLE, World, in_world

from kensho.base.errors import EngineError
from kensho.base.events import CanaryFinished, CircuitOpened, RequestFinished
from kensho.resilience.canary import Canary
from kensho.resilience.checkups import CheckupSettings, Seen, is_due
from kensho.resilience.circuit import Mode
from kensho.testing.engine import Fault

SETTINGS = CheckupSettings()


@pytest.mark.parametrize(
    ("seen", "due"),
    [
        (Seen(None, None, False), True),  # a standby that has come up
        (Seen(5.0, None, True), False),  # in a conversation
        (Seen(30.0, None, True), True),
        (Seen(None, 5000.0, False), False),  # nobody uses it
        (Seen(4000.0, 5000.0, False), False),
        (Seen(40.0, 59.0, True), False),
        (Seen(40.0, 60.0, True), True),
        (Seen(29.0, 599.0, True), False),
        (Seen(1.0, 600.0, True), True),
    ],
)
def test_when_a_check_is_due(seen: Seen, due: bool) -> None:
    assert is_due(seen, SETTINGS) is due
    assert not is_due(seen, CheckupSettings(every_s=0.0))


def checked(use: Any, **how: Any) -> World:
    return in_world(use, checkups=SETTINGS, **how)


def outcomes(world: World, engine: str) -> list[str]:
    return [event.outcome for event in world.of(CanaryFinished) if event.engine == engine]


def test_every_engine_is_checked_once_and_then_only_if_it_was_used() -> None:
    async def use(world: World) -> None:
        await asyncio.sleep(3600.0)
        assert (world.primary.streams, world.standby.streams) == (1, 1)
        assert await world.ask() == WHOLE
        await asyncio.sleep(3600.0)
        assert (world.primary.streams, world.standby.streams) == (3, 1)

    world = checked(use)
    assert outcomes(world, "primary") == outcomes(world, "standby") == ["passed"]
    assert len(world.of(RequestFinished)) == 1


def test_a_standby_that_answers_wrongly_is_found_before_anybody_needs_it() -> None:
    async def use(world: World) -> None:
        await asyncio.sleep(2.0)
        (opened,) = world.of(CircuitOpened)
        assert (opened.engine, opened.reason) == ("standby", "too many failures in a row, the last: mismatch")
        assert await world.ask() == WHOLE

    world = checked(use, prepare=lambda world: world.standby.inject(Fault("wrong")), before_s=0.0)
    assert outcomes(world, "standby")[0] == "failed: canary on standby: it answered other ids than expected"


@pytest.mark.parametrize("kind", ["wrong", "nan", "hang", "crash"])
def test_an_engine_that_fails_silently_is_found_within_a_minute_and_is_taken_out(kind: Any) -> None:
    async def use(world: World) -> None:
        await asyncio.sleep(60.0)
        assert await world.ask() == WHOLE
        world.primary.inject(Fault(kind))
        await asyncio.sleep(29.0)
        assert world.changes() == []
        await asyncio.sleep(9.0)
        assert world.changes()[:2] == ["CLOSED", "OPEN" if kind in ("wrong", "nan") else "RESTARTING"]
        assert await world.ask() == WHOLE

    world = checked(use)
    assert [event.outcome for event in world.of(RequestFinished)] == ["ok", "ok"]


def test_a_request_does_not_wait_for_a_check_but_for_a_step_of_it() -> None:
    canary = Canary([9], CANARY_IDS)

    async def use(world: World) -> None:
        await asyncio.sleep(1.01)
        assert (world.primary.streams, world.scheduler.snapshot().running) == (1, 0)
        began_s = world.clock.monotonic_s()
        assert await world.ask() == WHOLE
        assert world.clock.monotonic_s() - began_s == pytest.approx(0.12, abs=0.012)
        assert outcomes(world, "primary") == []
        await asyncio.sleep(40.0)
        assert outcomes(world, "primary") == ["passed"]
        assert world.scheduler.snapshot().circuits["primary"].counters.failures == 0

    checked(use, canary=canary, engines=1, before_s=0.0)


def test_nobody_is_checked_while_somebody_is_answered() -> None:
    async def use(world: World) -> None:
        async def keep_busy() -> None:
            for _ in range(100):
                assert await world.ask(prompt=[*PROMPT, 1]) != []

        await keep_busy()
        assert world.standby.streams == 0

    checked(use, before_s=0.5)


def test_one_that_a_person_has_shut_is_left_alone() -> None:
    async def use(world: World) -> None:
        world.scheduler.force("standby", Mode.FORCED_OPEN)
        world.scheduler.force("primary", Mode.FORCED_CLOSED)
        await asyncio.sleep(3600.0)
        assert (world.primary.streams, world.standby.streams) == (0, 0)

    checked(use, before_s=0.5)


def test_closing_during_a_check_leaves_nothing() -> None:
    async def use(world: World) -> None:
        await asyncio.sleep(1.01)
        assert world.standby.streams == 1

    checked(use, before_s=0.0)


def test_an_engine_alone_that_answers_wrongly_says_so_and_is_proven_before_it_answers_again() -> None:
    async def use(world: World) -> None:
        world.primary.inject(Fault("wrong"))
        await asyncio.sleep(1.5)
        assert world.scheduler.snapshot().circuits["primary"].mode is not Mode.CLOSED
        try:
            assert await world.ask() == WHOLE
        except EngineError as error:
            raise AssertionError("it is tried at once, since nobody else can answer") from error

    checked(use, engines=1, before_s=0.5)
