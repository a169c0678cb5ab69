"""Where an application's hosts come from: the first one soonest, all later ones from a fork-server that may fail."""

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest
from bare_hosts import ping, run
from one_host import answer, engine

from kensho.base.events import Event, ForkServerLost
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts import host_supply
from kensho.runtime.hosts.host_supply import MAX_FAILURES, HostSupply
from kensho.runtime.hosts.prefork import prefork

pytestmark = pytest.mark.real


def lost(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, ForkServerLost)]


def test_the_first_host_is_spawned_and_later_ones_are_forked() -> None:
    events: list[Event] = []

    async def main() -> None:
        supply = HostSupply(env={}, emit=events.append)
        first = await supply.start(env={}, allow_faults=False)
        assert supply.fork_server_pid is None
        assert psutil.Process(first.child.pid).ppid() == os.getpid()
        second, third = await asyncio.gather(*(supply.start(env={}, allow_faults=True) for _ in range(2)))
        for host in (second, third):
            assert psutil.Process(host.child.pid).ppid() == supply.fork_server_pid
        for host in (first, second, third):
            await ping(host)
            host.discard(5)
        supply.close()
        supply.close()

    run(main())
    assert events == []


def test_a_preforked_host_is_the_first_one_unless_faults_are_allowed() -> None:
    async def main(allow_faults: bool) -> None:
        first = prefork({})
        supply = HostSupply(env={}, emit=print, first=first)
        host = await supply.start(env={}, allow_faults=allow_faults)
        assert (host.child.pid == first.pid) is not allow_faults
        await ping(host)
        host.discard(5)
        other = await supply.start(env={}, allow_faults=allow_faults)
        assert psutil.Process(other.child.pid).ppid() == supply.fork_server_pid
        other.discard(5)
        supply.close()
        assert first.is_taken

    run(main(False))
    run(main(True))


def test_a_killed_fork_server_is_noticed_told_and_replaced_at_the_next_start() -> None:
    events: list[Event] = []

    async def main() -> None:
        supply = HostSupply(env={}, emit=events.append)
        hosts = [await supply.start(env={}, allow_faults=False) for _ in range(2)]
        await ping(hosts[1])
        old = supply.fork_server_pid
        assert old
        os.kill(old, signal.SIGKILL)
        while not events:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not psutil.pid_exists(old)
        assert supply.fork_server_pid is None
        hosts.append(await supply.start(env={}, allow_faults=False))
        assert supply.fork_server_pid not in (None, old)
        await ping(hosts[2])
        # Killed and asked before the loop could see it: the start is served by a spawn.
        os.kill(supply.fork_server_pid or 0, signal.SIGKILL)
        hosts.append(await supply.start(env={}, allow_faults=False))
        await ping(hosts[3])
        for host in hosts:
            host.discard(5)
        supply.close()

    run(main())
    assert lost(events) == ["SIGKILL"] * 2


def test_a_fork_server_that_cannot_start_costs_a_spawn_and_is_not_tried_for_ever(tmp_path: Path) -> None:
    events: list[Event] = []
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'fork_server_main' in ' '.join(sys.orig_argv): sys.exit('no library here')\n"
    )

    async def main() -> None:
        supply = HostSupply(env={"PYTHONPATH": str(tmp_path)}, emit=events.append)
        for _ in range(MAX_FAILURES + 2):
            host = await supply.start(env={}, allow_faults=False)
            await ping(host)
            host.discard(5)
        supply.close()

    run(main())
    assert lost(events) == ["exit code 1 (SystemExit: no library here)"] * MAX_FAILURES


def test_a_fork_server_that_hangs_is_left_alone_with_its_hosts_and_a_host_is_spawned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[Event] = []

    async def main() -> None:
        supply = HostSupply(env={}, emit=events.append)
        hosts = [await supply.start(env={}, allow_faults=False) for _ in range(2)]
        monkeypatch.setattr(host_supply, "FORK_AGAIN_S", 0.2)
        os.kill(supply.fork_server_pid or 0, signal.SIGSTOP)
        hosts.append(await supply.start(env={}, allow_faults=False))
        assert supply.fork_server_pid is None
        for host in hosts:
            await ping(host)
            host.child.kill()  # before its socket closes, at which it would end by itself
            host.sock.close()
            for descriptor in (host.segment, *host.life):
                os.close(descriptor)
        for host in (hosts[0], hosts[2]):
            host.child.reap(5)
        supply.close()
        assert hosts[1].child.reap(5).reason == "SIGKILL"

    run(main())
    assert lost(events) == ["it made no host within 0.2 s"]


def test_a_fork_server_that_hangs_is_replaced_and_ended_once_its_hosts_are_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(host_supply, "FORK_AGAIN_S", 0.2)

    async def main() -> None:
        supply = HostSupply(env={}, emit=lambda event: None)
        first, second = [await supply.start(env={}, allow_faults=False) for _ in range(2)]
        stalled = supply.fork_server_pid or 0
        os.kill(stalled, signal.SIGSTOP)
        second.discard(5)
        third = await supply.start(env={}, allow_faults=False)
        assert psutil.Process(third.child.pid).ppid() == os.getpid()
        fourth = await supply.start(env={}, allow_faults=False)
        assert psutil.Process(fourth.child.pid).ppid() == supply.fork_server_pid
        assert not psutil.pid_exists(stalled)
        for host in (first, third, fourth):
            await ping(host)
            host.discard(5)
        supply.close()

    run(main())


def test_an_engine_whose_fork_server_stalls_is_killed_and_starts_again(graph: LoadedGraph) -> None:
    async def main() -> None:
        supply = HostSupply(env={}, emit=lambda event: None)
        (await supply.start(env={}, allow_faults=False)).discard(5)  # only later ones are forked
        async with engine(graph, hosts=supply) as host:
            await host.start()
            os.kill(supply.fork_server_pid or 0, signal.SIGSTOP)
            for _ in range(2):
                os.kill(host.pid or 0, signal.SIGKILL)
                await host.kill()  # not EngineUnkillable
                await host.start()
                assert await answer(host)
            await host.close()
            supply.close()

    run(main())
