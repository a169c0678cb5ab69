"""Kill a real engine in mid-stream, again and again, and hold each answer against the uninterrupted one.

    report = await kill_rounds(stage, kills=100, rng=random.Random(1).random)
    assert report.wrong == 0
    report.gaps_ms, report.prefills_ms

The engine is killed with SIGKILL from outside, after a random token of a stream; the reader must see every token of
the uninterrupted answer once, whoever made it. The next round begins when the killed engine has come back by itself.
"""

import asyncio
import os
import signal
from contextlib import aclosing

from kensho.base.backoff import Rng
from kensho.base.clock import SystemClock
from kensho.base.inference import Sampling
from kensho.base.structs import Struct, field
from kensho.resilience.circuit import Mode
from kensho.testing.real_engines import PROMPT_IDS, Stage

TOKENS = 300
BACK_S = 60.0
"""How long a killed engine may take to come back before the rehearsal is given up."""


class KillReport(Struct, frozen=False):
    rounds: int = 0
    moved: int = 0
    """Streams that lost their engine and went on: a kill can come when the last token has been made."""
    wrong: int = 0
    """Answers with a token lost, repeated or changed."""
    gaps_ms: list[float] = field(factory=list)
    """Longest silence of each stream that moved, from the record of its answer."""
    prefills_ms: list[float] = field(factory=list)
    """What the other engine takes to its first token after prompt and prefix, undisturbed."""
    back_ms: list[float] = field(factory=list)
    """From the kill until the engine was proven and took requests again."""


async def kill_rounds(stage: Stage, *, kills: int, rng: Rng) -> KillReport:
    """Goes on until so many streams have lost their engine in the middle. Raises TimeoutError if one stays away."""
    sampling, clock, report = Sampling(max_tokens=TOKENS), SystemClock(), KillReport()
    whole = [token async for token in stage.scheduler.submit(PROMPT_IDS, sampling)]
    while report.moved < kills:
        report.rounds += 1
        kill_at = 1 + int(rng() * len(whole) * 0.9)
        got: list[int] = []
        answer = stage.scheduler.submit(PROMPT_IDS, sampling)
        killed_s: float | None = None
        async with aclosing(answer):
            async for token in answer:
                got.append(token)
                if len(got) == kill_at and (pid := stage.primary.pid) is not None:
                    killed_s = clock.monotonic_s()
                    os.kill(pid, signal.SIGKILL)
        report.wrong += got != whole
        if answer.record.failovers:
            report.moved += 1
            report.gaps_ms.append(answer.record.gap_ms)
            report.prefills_ms.append(await _prefill_ms(stage, whole[:kill_at], clock))
        async with asyncio.timeout(BACK_S):
            while not _is_back(stage):  # noqa: ASYNC110  # seen from outside, as a user would
                await asyncio.sleep(0.002)
        if killed_s is not None:
            report.back_ms.append((clock.monotonic_s() - killed_s) * 1e3)
    return report


async def _prefill_ms(stage: Stage, prefix: list[int], clock: SystemClock) -> float:
    """The same work once more, with nothing to be waited for: the standby has the prefix no longer in its cache."""
    one = Sampling(max_tokens=1)
    async with aclosing(stage.scheduler.submit((5, 6, 7), one, engine="standby")) as other:
        async for _ in other:
            pass
    began_s = clock.monotonic_s()
    async with aclosing(stage.scheduler.submit((*PROMPT_IDS, *prefix), one, engine="standby")) as answer:
        async for _ in answer:
            pass
    return (clock.monotonic_s() - began_s) * 1e3


def _is_back(stage: Stage) -> bool:
    circuit = stage.scheduler.snapshot().circuits["primary"]
    return circuit.mode is Mode.CLOSED and stage.primary.is_alive
