"""A sample of the virtual day; `make soak` has the whole one."""

import random

import pytest

from kensho.testing.engine import ScriptedEngine
from kensho.testing.soak import soak


@pytest.mark.real
def test_two_hours_of_faults_leave_nothing_behind_and_one_outcome_for_each_request() -> None:
    report = soak(hours=2.0, rng=random.Random(5).random)
    assert report.faults_found == []
    assert report.outcomes.total() == report.asked > 2000
    assert report.moved > 10
    assert {"ok", "failed", "cancelled", "rejected"} <= set(report.outcomes)


def test_the_soak_notices_an_engine_that_answers_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async def lie(self, prompt_ids, accepted_ids, sampling):  # type: ignore[no-untyped-def]
        yield 1000

    monkeypatch.setattr(ScriptedEngine, "generate", lie)
    report = soak(hours=0.01, rng=random.Random(5).random)
    assert any("other ids" in fault for fault in report.faults_found)
