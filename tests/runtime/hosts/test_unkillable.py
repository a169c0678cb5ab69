"""A process that SIGKILL does not end, as one stuck in a driver. Nobody can make one: its last word is played."""

import asyncio
from pathlib import Path

import pytest

from kensho.base.clock import SystemClock
from kensho.base.errors import EngineUnkillable
from kensho.base.ids import digest_of
from kensho.runtime.cache.loaded_graph import LoadedGraph
from kensho.runtime.hosts.host import EngineHost
from kensho.runtime.system.process import Ended


class Process:
    """What `EngineHost` needs of a HostProcess here."""

    is_alive = True

    def __init__(self, ended: Ended) -> None:
        self._ended = ended

    def kill(self, why: str) -> None:
        self.is_alive = False

    def close(self) -> None:
        self.is_alive = False

    async def ended(self) -> Ended:
        return self._ended


@pytest.fixture
def host(tmp_path: Path) -> EngineHost:
    return EngineHost(
        "primary",
        LoadedGraph("m", "1", digest_of(b"key"), tmp_path, tmp_path, "mapped", 256, "compile", 0.0),  # type: ignore[arg-type]
        clock=SystemClock(),
        emit=lambda _: None,
        env={},
        threads=1,
        max_context=128,
        start_s=1,
        inactivity_s=1,
    )


def test_a_process_that_is_still_there_after_sigkill_is_said_by_its_number(host: EngineHost) -> None:
    host._host = Process(Ended(4711, None, ""))  # type: ignore[assignment]
    with pytest.raises(EngineUnkillable, match=r"4711 .*SIGKILL") as caught:
        asyncio.run(host.kill())
    assert caught.value.advice == "reboot the machine"
    asyncio.run(host.close())  # nobody is told twice when the program ends


def test_one_that_ended_is_not(host: EngineHost) -> None:
    host._host = Process(Ended(4711, -9, ""))  # type: ignore[assignment]
    asyncio.run(host.kill())
