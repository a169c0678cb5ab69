"""A sample of the virtual day; `make soak` has the whole one."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from kensho.resilience.admission import Priority
from kensho.resilience.scheduler import Scheduler
from kensho.testing.engine import ScriptedEngine
from kensho.testing.soak import soak


@pytest.mark.real
def test_two_hours_of_faults_leave_nothing_behind_and_one_outcome_for_each_request() -> None:
    report = soak(hours=2.0, rng=random.Random(5).random)
    assert report.faults_found == []
    assert report.outcomes.total() == report.asked > 2000
    assert report.moved > 10
    assert {"ok", "failed", "cancelled", "rejected"} <= set(report.outcomes)
    assert min(report.interrupted[priority] for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW)) > 5
    assert report.interrupted[Priority.CRITICAL] == 0


def test_the_soak_notices_an_engine_that_answers_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = ScriptedEngine.generate

    async def lie(self, prompt_ids, accepted_ids, sampling):  # type: ignore[no-untyped-def]
        """To all but the canary, which would find it."""
        if tuple(prompt_ids) == (9,):
            async for token in generate(self, prompt_ids, accepted_ids, sampling):
                yield token
        else:
            yield 1000

    monkeypatch.setattr(ScriptedEngine, "generate", lie)
    report = soak(hours=0.01, rng=random.Random(5).random)
    assert any("other ids" in fault for fault in report.faults_found)


Tell = Callable[[Any, Any, str, Any], None]


def of_one_and_not_of_the_other(tell: Tell) -> Tell:
    """Of every second request two outcomes are told, and of the others none: the sum is right."""
    told: list[int] = []

    def tell_wrongly(scheduler: Any, request: Any, outcome: str, record: Any) -> None:
        told.append(1)
        if len(told) % 2 == 0:
            tell(scheduler, request, outcome, record)
            tell(scheduler, request, outcome, record)

    return tell_wrongly


def failures_as_successes(tell: Tell) -> Tell:
    return lambda scheduler, request, _, record: tell(scheduler, request, "ok", record)


def deadlines_as_failures(tell: Tell) -> Tell:
    def tell_wrongly(scheduler: Any, request: Any, outcome: str, record: Any) -> None:
        tell(scheduler, request, "failed" if outcome == "deadline" else outcome, record)

    return tell_wrongly


@pytest.mark.real
@pytest.mark.parametrize(
    ("mutant", "noticed"),
    [
        (of_one_and_not_of_the_other, ("saw ok, and ok and ok was told", "saw ok, and nothing was told")),
        (failures_as_successes, ("saw left, and ok was told",)),
        (deadlines_as_failures, ("saw deadline, and failed was told",)),
    ],
)
def test_the_soak_notices_outcomes_that_are_not_told_truly(
    mutant: Callable[[Tell], Tell], noticed: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scheduler, "_tell_finished", mutant(Scheduler._tell_finished))
    report = soak(hours=0.4, rng=random.Random(5).random)
    for what in noticed:
        assert any(what in fault for fault in report.faults_found), report.faults_found
