"""Faults armed in a real host: each is met as often as asked, and is what its name says (row S6)."""

import asyncio
import time

import numpy as np
import pytest
from one_host import PROMPT, answer, engine

from kensho.base.clock import SystemClock
from kensho.base.errors import ConfigError, EngineCrashed, EngineError, EngineHung, WrongNumbers
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.engine.faults import SLOW_START_S
from kensho.runtime.hosts.host import EngineHost

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("kind", "error", "survives"),
    [
        ("fail", EngineError, True),
        ("nan", WrongNumbers, True),
        ("oom", EngineError, True),
        ("crash", EngineCrashed, False),
    ],
)
def test_an_armed_fault_is_met_as_often_as_asked_across_restarts(
    kind: str, error: type[EngineError], survives: bool, graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            host.arm_fault(kind, 2)  # type: ignore[arg-type]
            for _ in range(2):
                await host.start()
                with pytest.raises(error):
                    await answer(host)
                assert host.is_alive == survives
            await host.start()
            assert await answer(host) == undisturbed
            host.arm_fault(kind, 1)  # type: ignore[arg-type]
            host.clear_faults()
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_host_armed_with_wrong_numbers_answers_with_other_plausible_tokens_once(
    graph: LoadedGraph, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            right = await host.logits(PROMPT)
            host.arm_fault("wrong", 2)
            assert np.isfinite(wrong := await host.logits(PROMPT)).all()
            assert np.abs(wrong - right).max() > 0.1
            answered = await answer(host)
            assert len(answered) == len(undisturbed)
            assert answered != undisturbed
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_host_armed_to_be_cut_off_ends_in_the_middle_of_a_message(graph: LoadedGraph, undisturbed: list[int]) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            for work in (answer, lambda host: host.logits(PROMPT)):
                await host.start()
                host.arm_fault("truncate", 1)
                with pytest.raises(EngineCrashed, match="in the middle of a message"):
                    await work(host)
                assert not host.is_alive
            await host.start()
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_a_slow_start_takes_longer_or_is_given_up(
    graph: LoadedGraph, monkeypatch: pytest.MonkeyPatch, undisturbed: list[int]
) -> None:
    async def run() -> None:
        async with engine(graph) as host:
            await host.start()
            host.arm_fault("slow_start", 2)
            assert await answer(host) == undisturbed  # it is for starts, not for requests
            await host.close()
            monkeypatch.setattr(host, "_start_s", 0.7)
            with pytest.raises(EngineHung, match="did not load"):
                await host.start()
            monkeypatch.setattr(host, "_start_s", 30)
            began = time.monotonic()
            await host.start()
            assert time.monotonic() - began > SLOW_START_S
            assert await answer(host) == undisturbed

    asyncio.run(run())


def test_faults_are_refused_where_they_are_not_allowed(graph: LoadedGraph) -> None:
    host = EngineHost(
        "e", graph, clock=SystemClock(), emit=print, env={}, threads=1, max_context=9, start_s=1, inactivity_s=1
    )
    with pytest.raises(ConfigError, match="does not allow faults"):
        host.arm_fault("crash", 1)
