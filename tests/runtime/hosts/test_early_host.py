"""A host that is started before it is needed: taken once, or gone."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import cast

import pytest

from kensho.base.errors import EngineError
from kensho.runtime.hosts.early_host import EarlyHosts
from kensho.runtime.hosts.host_source import NewHost
from kensho.testing.loop import run_virtual


class Made:
    """A process that takes no more than a number."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_discarded = False

    def discard(self, reap_s: float) -> None:
        self.is_discarded = True


class Source:
    def __init__(self) -> None:
        self.made: list[Made] = []
        self.asked = 0
        self.errors: list[EngineError] = []

    async def start(self, *, env: Mapping[str, str], allow_faults: bool) -> NewHost:
        self.asked += 1
        await asyncio.sleep(0.2)
        if self.errors:
            raise self.errors.pop()
        self.made.append(Made(self.asked))
        return cast("NewHost", self.made[-1])


def play(scene: Callable[[Source, EarlyHosts], Coroutine[None, None, None]]) -> Source:
    source = Source()

    async def run() -> None:
        hosts = EarlyHosts(source)
        await scene(source, hosts)
        await hosts.discard()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(run())
    return source


async def start(hosts: EarlyHosts, *, allow_faults: bool = False) -> int:
    return cast("Made", await hosts.start(env={}, allow_faults=allow_faults)).number


def now_s() -> float:
    return asyncio.get_running_loop().time()


def test_a_prepared_host_is_there_when_the_graph_is() -> None:
    async def scene(source: Source, hosts: EarlyHosts) -> None:
        hosts.prepare(env={}, allow_faults=False)
        hosts.prepare(env={}, allow_faults=False)
        await asyncio.sleep(0.3)
        began_s = now_s()
        assert await start(hosts) == 1
        assert now_s() == began_s
        assert await start(hosts) == 2
        assert now_s() > began_s

    assert play(scene).asked == 2


def test_whoever_comes_before_it_is_up_waits_only_for_the_rest() -> None:
    async def scene(source: Source, hosts: EarlyHosts) -> None:
        hosts.prepare(env={}, allow_faults=False)
        await asyncio.sleep(0.15)
        began_s = now_s()
        assert await start(hosts) == 1
        assert now_s() - began_s == pytest.approx(0.05)

    play(scene)


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.3])
def test_a_host_that_nobody_takes_is_ended(after_s: float) -> None:
    async def scene(source: Source, hosts: EarlyHosts) -> None:
        hosts.prepare(env={}, allow_faults=False)
        await asyncio.sleep(after_s)
        await hosts.discard()
        await hosts.discard()

    assert all(made.is_discarded for made in play(scene).made)


def test_a_prepared_host_that_does_not_come_up_costs_another_start() -> None:
    async def scene(source: Source, hosts: EarlyHosts) -> None:
        source.errors = [EngineError("no more processes")]
        hosts.prepare(env={}, allow_faults=False)
        assert await start(hosts) == 2

    play(scene)


def test_a_host_for_other_promises_is_not_taken() -> None:
    async def scene(source: Source, hosts: EarlyHosts) -> None:
        hosts.prepare(env={}, allow_faults=False)
        await asyncio.sleep(0.3)
        assert await start(hosts, allow_faults=True) == 2

    source = play(scene)
    assert [made.is_discarded for made in source.made] == [True, False]


@pytest.mark.parametrize("after_s", [0.05, 0.19])
def test_a_start_that_is_cancelled_leaves_no_prepared_host(after_s: float) -> None:
    async def scene(source: Source, hosts: EarlyHosts) -> None:
        hosts.prepare(env={}, allow_faults=False)
        starting = asyncio.create_task(start(hosts))
        await asyncio.sleep(after_s)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()

    assert all(made.is_discarded for made in play(scene).made)
