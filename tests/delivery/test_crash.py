"""Killed, out of space or out of luck at any operation of install, update, rollback and gc: old or new, never between,
and running it again works with no cleaning up."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kensho.base.errors import StorageError
from kensho.delivery.checker import verify
from kensho.delivery.retention import gc, rollback
from kensho.server.origin import Origin
from kensho.testing.client import FIRST, SECOND, Client, model_files, weights
from kensho.testing.disk import FaultyDisk, Stopped
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

SWEEP = pytest.mark.parametrize("stride", [23, pytest.param(1, marks=pytest.mark.real)])
"""At every operation, or, in the fast tests, at every 23rd."""
FAULTS = pytest.mark.parametrize("fault", ["stop", errno.ENOSPC, errno.EIO], ids=["kill", "ENOSPC", "EIO"])
V1, V2 = model_files(FIRST), model_files(SECOND)


def _sweep(
    ram: Path,
    world: SimulatedRepository,
    fault: object,
    stride: int,
    prepare: Callable[[Client], object],
    act: Callable[[Client], object],
    look: Callable[[Client], None],
) -> int:
    """`act` with a fault at each operation; `look` at what is there afterwards. Returns the operations there were."""
    for at in range(1, 10_000, stride):
        root = ram / str(at)
        client = Client(root, world)
        prepare(client)
        client.store.close()
        disk = FaultyDisk(at=at, fault=fault)  # type: ignore[arg-type]
        with suppress(Stopped, StorageError):
            victim = Client(root, world, disk=disk)
            with closing(victim.store):
                act(victim)
        disk.release()
        after = Client(root, world)
        look(after)
        assert not verify(after.store, is_full=True, clock=after.clock, emit=after.events.append).damaged
        after.store.close()
        if not disk.is_reached:
            return at
    raise AssertionError("it never ended")


def _content(client: Client) -> dict[str, bytes] | None:
    return client.content() if client.store.installed() else None


@SWEEP
@FAULTS
def test_an_install_is_whole_or_absent(ram: Path, world: SimulatedRepository, fault: object, stride: int) -> None:
    def look(client: Client) -> None:
        assert _content(client) in (None, V1)
        assert client.pull(world.source()).models[0].state in ("updated", "current")
        assert client.content() == V1

    steps = _sweep(ram, world, fault, stride, lambda _: None, lambda client: client.pull(world.source()), look)
    assert steps > 40


@SWEEP
@FAULTS
def test_an_update_is_old_or_new(
    ram: Path, world: SimulatedRepository, grown: SimulatedRepository, fault: object, stride: int
) -> None:
    def look(client: Client) -> None:
        version = client.store.model("voice").version
        assert client.content() == {"1.0": V1, "2.0": V2}[version]
        assert client.pull(grown.source()).models[0].state in ("updated", "current")
        assert client.content() == V2
        assert rollback(client.store, "voice", clock=client.clock, emit=client.events.append) == "1.0"
        assert client.content() == V1

    first, second = world.source(), grown.source()
    assert _sweep(ram, world, fault, stride, lambda c: c.pull(first), lambda c: c.pull(second), look) > 20


@SWEEP
def test_gc_leaves_the_current_and_the_previous_version(
    ram: Path, world: SimulatedRepository, grown: SimulatedRepository, stride: int, tmp_path: Path
) -> None:
    third = grown.copy(tmp_path)
    third.publish("voice", "3.0", model_files(weights(9)))
    sources = [world.source(), grown.source(), third.source()]

    def look(client: Client) -> None:
        assert client.content() == model_files(weights(9))
        gc(client.store, clock=client.clock)
        assert {release.version for release in client.store.state.releases()} == {"2.0", "3.0"}
        rollback(client.store, "voice", clock=client.clock, emit=client.events.append)
        assert client.content() == V2

    def act(client: Client) -> None:
        gc(client.store, clock=client.clock)

    assert _sweep(ram, world, "stop", stride, lambda c: [c.pull(source) for source in sources], act, look) > 5


PULL = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from random import random
from kensho.base.clock import SystemClock
from kensho.delivery.disk import RealDisk
from kensho.delivery.sources import open_source
from kensho.delivery.store import Store
from kensho.delivery.trust import Trust
from kensho.delivery.updater import Updater
clock = SystemClock()
store = Store.create(Path(sys.argv[1]), disk=RealDisk())
Trust.initialise(store.trusted, Path(sys.argv[3]).read_bytes())
trust = Trust(store.trusted, now=lambda: datetime.now(UTC), emit=lambda event: None)
source = open_source(sys.argv[2], clock=clock, proxy=None, allow_network=True)
updater = Updater(store, trust, [source], client_version="0.1.0", emit=lambda event: None, clock=clock, rng=random)
report = updater.pull(["voice"])
print(report.models[0].state, flush=True)
"""


@pytest.mark.real
def test_a_pulling_process_that_is_killed_at_random_refetches_at_most_what_was_in_flight(tmp_path: Path) -> None:
    """24 MiB in chunks of at most 4 MiB; the bound is 4 connections x 4 MiB for each kill."""
    world = SimulatedRepository(tmp_path / "world", now=datetime.now(UTC))
    world.publish("voice", "1.0", model_files(weights(5, count=48, size=512 << 10)))
    size = sum(path.stat().st_size for path in (world.folder / "packs").iterdir())
    root = world.folder / "metadata" / "1.root.json"
    kills, spent = 0, 0.0
    with Origin(world.folder) as origin:
        for round_ in range(6):
            store = tmp_path / f"store-{round_}"
            command = [sys.executable, "-c", PULL, str(store), origin.url, str(root)]
            before, round_kills = origin.bytes_sent, 0
            while True:
                child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                wait_for = before + size * (1 + 2 * round_kills + round_) // 14
                start = time.monotonic()
                while child.poll() is None and (origin.bytes_sent < wait_for or round_kills == 3):
                    time.sleep(0.001)
                    assert time.monotonic() - start < 60
                if child.poll() is None:
                    os.kill(child.pid, signal.SIGKILL)
                output, _ = child.communicate()
                if child.returncode == 0:
                    assert output.strip() in ("updated", "current")
                    break
                assert child.returncode == -signal.SIGKILL
                round_kills += 1
            sent = origin.bytes_sent - before
            assert sent <= size + round_kills * (4 * (4 << 20) + (1 << 20)), "refetched more than was in flight"
            kills, spent = kills + round_kills, spent + (sent - size) / max(round_kills, 1)
            client = Client(store, world)
            assert client.content() == model_files(weights(5, count=48, size=512 << 10))
            assert not verify(client.store, is_full=True, clock=client.clock, emit=client.events.append).damaged
    assert kills >= 6
    print(f"{kills} kills, {spent / 6 / (1 << 20):.1f} MiB refetched per kill")
