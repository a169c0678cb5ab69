import math
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from kensho.base.inference import Sampling
from kensho.resilience.canary import Canary
from kensho.resilience.failure_class import FailureClass
from kensho.testing.clock import VirtualClock
from kensho.testing.engine import Fault, ScriptedEngine, expected_ids
from kensho.testing.loop import run_virtual

EXPECTED = expected_ids([9], Sampling(max_tokens=3))


class Thinking(ScriptedEngine):
    """It says what it thinks of every id."""

    def __init__(self, name: str, logit: float) -> None:
        super().__init__(name)
        self.logit = logit

    async def logits(self, prompt_ids: Sequence[int]) -> Sequence[float]:
        assert tuple(prompt_ids) == (9,)
        return [self.logit if i == EXPECTED[0] else 0.0 for i in range(1000)]


class Gpu(ScriptedEngine):
    device = "cuda:0"


def judged(canary: Canary, engine: Any, *, learnt_from: Any = None) -> Any:
    async def main() -> Any:
        if learnt_from is not None:
            await learnt_from.start()
            await canary.learn(learnt_from, clock.monotonic_s)
        await engine.start()
        return await canary.judge(engine, clock.monotonic_s)

    clock = VirtualClock()
    return run_virtual(main(), clock=clock)


def failure(verdict: Any) -> FailureClass | None:
    return verdict.failure if verdict else None


def test_the_right_ids_pass_and_others_are_a_mismatch() -> None:
    assert judged(Canary([9], EXPECTED), ScriptedEngine("e")) is None
    liar = ScriptedEngine("e")
    liar.inject(Fault("wrong", 2))
    assert failure(judged(Canary([9], EXPECTED), liar)) is FailureClass.MISMATCH


@pytest.mark.parametrize(
    ("logit", "kind"),
    [
        (12.0, None),
        (12.1, None),
        (11.9, None),
        (12.11, FailureClass.MISMATCH),
        (-12.0, FailureClass.MISMATCH),
        (math.nan, FailureClass.WRONG_NUMBERS),
        (math.inf, FailureClass.WRONG_NUMBERS),
    ],
)
def test_right_ids_with_another_logit_are_a_mismatch(logit: float, kind: FailureClass | None) -> None:
    canary = Canary([9], EXPECTED, expected_logit=12.0, tolerance=0.1001)
    assert failure(judged(canary, Thinking("e", logit))) is kind


def test_an_engine_that_offers_no_logits_is_judged_by_its_ids() -> None:
    assert judged(Canary([9], EXPECTED, expected_logit=12.0), ScriptedEngine("e")) is None


def test_only_an_engine_that_claims_a_device_must_be_faster_than_the_cpu() -> None:
    def cpu() -> ScriptedEngine:
        return ScriptedEngine("cpu", token_s=0.05)

    slow, fast = Gpu("gpu", token_s=0.06), Gpu("gpu", token_s=0.001)
    verdict = judged(Canary([9], EXPECTED), slow, learnt_from=cpu())
    assert failure(verdict) is FailureClass.NOT_FASTER
    assert verdict.words == "cuda:0 took 200 ms, and the CPU 170 ms"
    assert judged(Canary([9], EXPECTED), fast, learnt_from=cpu()) is None
    assert judged(Canary([9], EXPECTED), ScriptedEngine("e", token_s=0.2), learnt_from=cpu()) is None


def test_the_cpu_is_timed_once_somebody_claims_to_be_faster() -> None:
    canary = Canary([9], EXPECTED)
    assert canary.is_known
    assert judged(canary, Gpu("gpu")) is None
    assert not canary.is_known
    assert judged(canary, ScriptedEngine("cpu")) is None
    assert canary.is_known


def test_an_engine_that_nobody_could_vouch_for_must_repeat_itself() -> None:
    canary = Canary([9])
    assert not canary.is_known
    assert judged(canary, ScriptedEngine("e")) is None
    liar = ScriptedEngine("e")
    liar.inject(Fault("wrong", 0))
    assert failure(judged(canary, liar)) is FailureClass.MISMATCH


def test_what_is_learnt_from_one_engine_is_asked_of_the_other() -> None:
    class Other(ScriptedEngine):
        async def generate(
            self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
        ) -> AsyncGenerator[int, None]:
            async for token in super().generate(prompt_ids, accepted_ids, sampling):
                yield token + 1

    assert judged(Canary([9]), ScriptedEngine("b"), learnt_from=ScriptedEngine("a")) is None
    assert failure(judged(Canary([9]), Other("b"), learnt_from=ScriptedEngine("a"))) is FailureClass.MISMATCH
