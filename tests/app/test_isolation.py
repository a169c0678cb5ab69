"""Where the engines of an application run: processes from one supply, or threads of this process."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kensho.app import Kensho
from kensho.base.clock import SystemClock
from kensho.base.errors import ConfigError
from kensho.base.events import EngineLost, EngineStarted, Event, ForkServerLost
from kensho.cli.main import main
from kensho.delivery.keys import keygen
from kensho.demo.stage import embedded_model, questions
from kensho.runtime.hosts.prefork import Prefork, prefork
from kensho.settings import load_settings

pytestmark = pytest.mark.real

QUESTION = questions("1.0.0")[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with the demo's model, compiled. Each test opens it anew."""
    folder = tmp_path_factory.mktemp("isolation")
    keygen(folder / "keys")
    repository = folder / "repository"
    argv = ["publish", str(embedded_model() / "v1"), "--model", "demo", "--version", "1.0.0", "--quiet"]
    assert main([*argv, "--to", str(repository), "--keys", str(folder / "keys")]) == 0
    with opened(folder / "store", []) as app:
        app.init(f"file://{repository}", (repository / "metadata" / "1.root.json").read_bytes())
        app.pull(["demo"])

    async def compile_it() -> None:
        async with opened(folder / "store", []) as app:
            await app.compile("demo")

    asyncio.run(compile_it())
    yield folder / "store"


def opened(store: Path, events: list[Event], first_host: Prefork | None = None, **settings: object) -> Kensho:
    loaded = load_settings({"store": str(store), **settings})
    return Kensho(loaded, clock=SystemClock(), listener=events.append, first_host=first_host)


async def ask(app: Kensho) -> str:
    return "".join([token.text async for token in app.generate("demo", QUESTION.question)])


def count(events: list[Event], kind: type[Event]) -> int:
    return sum(isinstance(event, kind) for event in events)


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_without_isolation_no_process_is_started(store: Path) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with opened(store, events, isolation="none", allow_faults=True) as app:
            assert await ask(app) == QUESTION.answer
            assert await ask(app) == QUESTION.answer
            assert children() == []
            assert app.engine_pids("demo") == {"primary": None, "standby": None}
            with pytest.raises(ConfigError, match="isolation=process"):
                app.arm_fault("demo", "primary", "crash")

    asyncio.run(run())
    assert [event.pid for event in events if isinstance(event, EngineStarted)] == [os.getpid()]


def test_a_preforked_host_is_the_primary_and_the_standby_comes_from_a_fork_server(store: Path) -> None:
    events: list[Event] = []
    first = prefork()

    async def run() -> None:
        async with opened(store, events, first) as app:
            assert await ask(app) == QUESTION.answer
            assert first.is_taken
            assert app.engine_pids("demo")["primary"] == first.pid
            await until(lambda: count(events, EngineStarted) == 2)
            standby = app.engine_pids("demo")["standby"]
            assert standby
            assert "fork_server_main" in " ".join(psutil.Process(standby).parent().cmdline())  # type: ignore[union-attr]

    asyncio.run(run())
    first.close()
    assert children() == []
    assert not [event for event in events if isinstance(event, EngineLost)]


def test_an_application_survives_the_death_of_its_fork_server(store: Path) -> None:
    events: list[Event] = []

    async def run() -> None:
        async with opened(store, events) as app:
            assert await ask(app) == QUESTION.answer
            await until(lambda: count(events, EngineStarted) == 2)
            server = psutil.Process(app.engine_pids("demo")["standby"] or 0).parent()
            assert server
            server.send_signal(signal.SIGKILL)
            await until(lambda: count(events, EngineLost) == 1)
            assert await ask(app) == QUESTION.answer
            await until(lambda: count(events, EngineStarted) == 3)

    asyncio.run(asyncio.wait_for(run(), 60))
    assert children() == []
    assert [event.reason for event in events if isinstance(event, ForkServerLost)] == ["SIGKILL"]
    assert [event.engine for event in events if isinstance(event, EngineLost)] == ["standby"]
