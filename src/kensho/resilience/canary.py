"""The probe of a circuit: a fixed prompt whose right answer is known. It spares users (row S2).

    canary = Canary(vector.prompt_ids, vector.expected_ids, expected_logit=12.25, tolerance=0.1)
    verdict = await canary.judge(engine)          # None: passed

A healthy engine answers greedily with the expected ids; where it can be asked for its logits, the expected one must be
as large as it was, within the tolerance of the graph's self-test; and an engine that claims a device of its own must
be faster than the CPU, because libraries fall back to the CPU silently (onnxruntime issues 23372, 17801, 21424).
"""

import math
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Protocol, runtime_checkable

from kensho.base.clock import Seconds
from kensho.base.inference import Engine, Sampling
from kensho.base.structs import Struct
from kensho.resilience.failure_class import FailureClass


@runtime_checkable
class OffersLogits(Protocol):
    """An engine that can be asked what it thinks of every id."""

    async def logits(self, prompt_ids: Sequence[int]) -> Sequence[float]:
        """One number for each id of the vocabulary, after the prompt. Raises EngineError, WrongNumbers among them:
        whether all are finite is checked where they are made."""
        ...


@runtime_checkable
class ClaimsDevice(Protocol):
    """An engine that says where it computes."""

    @property
    def device(self) -> str:
        """`cpu`, `cuda:0` ..."""
        ...


class Verdict(Struct):
    """Why an engine did not pass."""

    failure: FailureClass
    words: str


class Canary:
    """A fixed prompt and the ids that a healthy engine answers greedily.

    Best: `expected_ids` from the model's self-test. Without them `learn` asks an engine that has given no reason for
    doubt. If a restarted engine is probed before anyone could be asked, it must at least repeat itself.
    """

    LEARNED_TOKENS = 4

    def __init__(
        self,
        prompt_ids: Sequence[int],
        expected_ids: Sequence[int] | None = None,
        *,
        expected_logit: float | None = None,
        tolerance: float = 0.0,
    ) -> None:
        """`expected_logit`: of the first expected id, after the prompt alone."""
        self._prompt_ids = tuple(prompt_ids)
        self._expected_ids = None if expected_ids is None else tuple(expected_ids)
        self._expected_logit = expected_logit
        self._tolerance = tolerance
        self._cpu_s: Seconds | None = None
        self._wants_cpu_time = False

    @property
    def is_known(self) -> bool:
        """False: `learn` should be called in a quiet moment, on an engine that nobody doubts, best on the CPU."""
        return self._expected_ids is not None and not self._wants_cpu_time

    async def learn(self, engine: Engine, now_s: Callable[[], Seconds] | None = None) -> None:
        """Take this engine's answer for the right one, unless one is known, and with a clock the CPU's time for it.
        Raises what the engine raises."""
        ids, seconds = await self._ask(engine, now_s or (lambda: 0.0))
        if self._expected_ids is None:
            self._expected_ids = ids
        if now_s and _device(engine) == "cpu":
            self._note_cpu(seconds)

    async def judge(self, engine: Engine, now_s: Callable[[], Seconds]) -> Verdict | None:
        """What is wrong with the engine's answer; None if nothing is. Raises what the engine raises."""
        ids, seconds = await self._ask(engine, now_s)
        if self._expected_ids is None:
            self._expected_ids = ids
        if ids != self._expected_ids:
            return Verdict(FailureClass.MISMATCH, "it answered other ids than expected")
        if self._expected_logit is not None and isinstance(engine, OffersLogits):
            got = (await engine.logits(self._prompt_ids))[self._expected_ids[0]]
            if not math.isfinite(got):
                return Verdict(FailureClass.WRONG_NUMBERS, "a logit is not finite")
            if abs(got - self._expected_logit) > self._tolerance:
                words = f"a logit is {got:.3f} and not {self._expected_logit:.3f} +- {self._tolerance:.3f}"
                return Verdict(FailureClass.MISMATCH, words)
        if _device(engine) == "cpu":
            self._note_cpu(seconds)
        elif self._cpu_s is None:
            self._wants_cpu_time = True
        elif seconds >= self._cpu_s:
            words = f"{_device(engine)} took {seconds * 1e3:.0f} ms, and the CPU {self._cpu_s * 1e3:.0f} ms"
            return Verdict(FailureClass.NOT_FASTER, words)
        return None

    def _note_cpu(self, seconds: Seconds) -> None:
        self._cpu_s = seconds if self._cpu_s is None else min(seconds, self._cpu_s)
        self._wants_cpu_time = False

    async def _ask(self, engine: Engine, now_s: Callable[[], Seconds]) -> tuple[tuple[int, ...], Seconds]:
        wanted = self.LEARNED_TOKENS if self._expected_ids is None else max(1, len(self._expected_ids))
        began_s = now_s()
        async with aclosing(engine.generate(self._prompt_ids, (), Sampling(max_tokens=wanted))) as ids:
            return tuple([token async for token in ids]), now_s() - began_s


def _device(engine: Engine) -> str:
    return engine.device if isinstance(engine, ClaimsDevice) else "cpu"
