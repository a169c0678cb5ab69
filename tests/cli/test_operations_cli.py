"""Looking after what is installed, from the command line, and from several processes at once."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kensho.cli.main import main
from kensho.server.origin import Origin
from kensho.testing.client import FIRST, SECOND, model_files, weights
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.real


@dataclass
class Machine:
    """A store of its own and a publisher that it trusts; commands run in this process."""

    folder: Path
    world: SimulatedRepository
    capsys: pytest.CaptureFixture[str]

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def kensho(self, *argv: str) -> dict[str, object]:
        code = main(["--json", "--store", str(self.store), *argv])
        summary = dict(json.loads(self.capsys.readouterr().out.splitlines()[-1]))
        assert summary["code"] == code
        return summary

    def say(self, *argv: str) -> str:
        """What people read."""
        main(["--store", str(self.store), *argv])
        return self.capsys.readouterr().out

    def init(self, url: str | None = None) -> None:
        root = self.world.folder / "metadata" / "1.root.json"
        assert self.kensho("init", "--from", url or self.world.folder.as_uri(), "--root", str(root))["code"] == 0

    def command(self, *argv: str) -> list[str]:
        return [sys.executable, "-m", "kensho", "--json", "--store", str(self.store), *argv]

    def version(self) -> object:
        models = self.kensho("status")["models"]
        return models[0]["version"]  # type: ignore[index]


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Machine:
    world = SimulatedRepository(tmp_path / "world", now=datetime.now(UTC))
    world.publish("voice", "1.0", model_files(FIRST))
    return Machine(tmp_path, world, capsys)


# --- pin, rollback, gc, status ---


def test_a_pinned_model_stays_until_it_is_released(machine: Machine) -> None:
    machine.init()
    machine.kensho("pull", "voice")
    assert "in use; no pull changes it" in machine.say("pin", "voice", "1.0")
    machine.world.publish("voice", "2.0", model_files(SECOND))
    assert machine.kensho("pull")["models"][0]["state"] == "current"  # type: ignore[index]
    assert "held at 1.0" in machine.say("status")
    assert machine.kensho("status")["models"][0]["pinned"] == "1.0"  # type: ignore[index]
    assert "held no longer" in machine.say("pin", "voice", "--release")
    assert machine.kensho("pull")["models"][0]["version"] == "2.0"  # type: ignore[index]
    assert machine.kensho("pin", "voice", "1.0") == {"type": "summary", "ok": True, "code": 0, "version": "1.0"}
    assert machine.version() == "2.0", "a pin changes nothing by itself"
    assert machine.kensho("pull")["models"][0]["version"] == "1.0"  # type: ignore[index]
    assert machine.kensho("pin", "voice", "--release")["version"] is None


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["voice"], 2),
        (["voice", "1.0", "--release"], 2),
        (["none", "1.0"], 1),
        (["voice", "../x"], 2),
        (["a b", "1"], 2),
    ],
)
def test_a_pin_that_makes_no_sense_is_refused(machine: Machine, argv: list[str], code: int) -> None:
    machine.init()
    machine.kensho("pull", "voice")
    summary = machine.kensho("pin", *argv)
    assert (summary["code"], bool(summary["advice"])) == (code, True)


def test_a_rollback_says_that_the_next_pull_goes_forward_and_how_to_hold(machine: Machine) -> None:
    machine.init()
    machine.kensho("pull", "voice")
    machine.world.publish("voice", "2.0", model_files(SECOND))
    machine.kensho("pull")
    said = machine.say("rollback", "voice")
    assert "voice is 1.0 again" in said and "kensho pin voice 1.0" in said
    assert machine.kensho("pull")["models"] == [{"model": "voice", "version": "2.0", "state": "updated", "reason": ""}]


def test_a_pull_frees_old_versions_and_gc_those_that_nothing_needs(machine: Machine) -> None:
    machine.init()
    machine.kensho("pull", "voice")
    freed = []
    for number in (2, 3, 4):
        machine.world.publish("voice", f"{number}.0", model_files(weights(number)))
        freed.append(machine.kensho("pull")["bytes_freed"])
    assert freed[:2] == [0, 0]
    assert int(str(freed[2])) > 100_000
    assert int(str(machine.kensho("gc")["bytes_freed"])) > 100_000
    assert sorted(path.name for path in (machine.store / "versions" / "voice").iterdir()) == ["3.0", "4.0"]
    assert machine.kensho("gc")["bytes_freed"] == 0
    assert machine.kensho("rollback", "voice")["version"] == "3.0"


def test_the_status_says_which_check_was_done_and_looking_changes_nothing(machine: Machine) -> None:
    machine.init()
    machine.kensho("pull", "voice")
    machine.kensho("verify", "--full")
    first = machine.kensho("status")
    assert first["last_check"]["kind"] == "full"  # type: ignore[index]
    assert set(first["checks"]) == {"load", "full"}  # type: ignore[call-overload]
    assert first == machine.kensho("status")
    machine.kensho("verify")
    assert machine.kensho("status")["last_check"]["kind"] == "quick"  # type: ignore[index]


# --- space ---

FILL = """
import os, sys
from pathlib import Path
from kensho.base.events import DownloadProgress
from kensho.delivery.checker import verify
from kensho.testing.client import FIRST, NOW, Client, model_files, weights
from kensho.testing.repository import SimulatedRepository
small, scratch = Path(sys.argv[1]), Path(sys.argv[2])
world = SimulatedRepository(scratch, now=NOW)
first, second = (model_files(weights(seed, count=12, size=100_000)) for seed in (1, 2))
world.publish("voice", "1.0", first)
client = Client(small / "store", world)
client.pull(world.source())
world.publish("voice", "2.0", second)
filler = os.open(small / "filler", os.O_WRONLY | os.O_CREAT)
def fill(event):
    if isinstance(event, DownloadProgress) and event.done > event.total // 2:
        try:
            while True:
                os.write(filler, bytes(4096))
        except OSError:
            pass
updater = client.updater(world.source())
updater._emit = fill
[result] = updater.pull(["voice"]).models
print(result.state, result.version, result.error.code, sep=",")
print(client.content() == first, sorted(path.suffix for path in (small / "store" / "staging").iterdir()), sep=",")
client.store.close()
os.close(filler)
(small / "filler").unlink()
again = Client(small / "store", world)
source = world.source()
print(again.pull(source).models[0].state, again.content() == second, sep=",")
print(sum(length for _, _, length in source.ranges) < 700_000)
print(verify(again.store, is_full=True, clock=again.clock, emit=again.events.append).damaged)
"""


SHORT = """
import sys
from pathlib import Path
from kensho.base.errors import NotEnoughSpace
from kensho.delivery.leases import lease_version
from kensho.testing.client import NOW, Client, model_files, weights
from kensho.testing.repository import SimulatedRepository
small, scratch = Path(sys.argv[1]), Path(sys.argv[2])
world = SimulatedRepository(scratch, now=NOW)
client = lease = None
for number in (1, 2, 3):
    world.publish("voice", f"{number}.0", model_files(weights(number, count=2, size=1 << 20)))
    client = client or Client(small / "store", world)
    client.pull(world.source())
    lease = lease or lease_version(client.store.versions.path("voice", "1.0"))
world.publish("voice", "4.0", model_files(weights(4, count=2, size=1 << 20)))
(small / "other").write_bytes(bytes(1 << 20))
[result] = client.pull(world.source()).models
facts = result.error.facts
print(result.state, result.error.code, sep="\\n")
print(facts["needed_bytes"] > facts["free_bytes"] > 0 and facts["reclaimable_bytes"] == 0)
lease.close()
try:
    client.updater(world.source()).plan(["voice"])
except NotEnoughSpace as error:
    print(error.advice)
print(client.pull(world.source()).models[0].state)
"""


@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_fills_up_in_the_middle_leaves_the_old_version_and_what_was_fetched(tmp_path: Path) -> None:
    """A real tmpfs of 6 MB, filled by another writer when half of the update has come."""
    small = tmp_path / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=6m tmpfs "{small}" && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", FILL, str(small), str(tmp_path / "w")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "failed,1.0,no_space", "True,['.part']", "updated,True", "True", "()",
    ], done.stderr  # fmt: skip


@pytest.mark.needs("unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_too_little_space_says_what_is_needed_free_and_to_be_had_by_gc(tmp_path: Path) -> None:
    """On a real tmpfs of 10 MB: versions of 2 MB, the oldest of which is in use, and then is not: it goes first."""
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=10m tmpfs "{small}" && exec "$@"', "sh",
         sys.executable, "-c", SHORT, str(small), str(tmp_path / "w")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state, code, has_facts, advice, after = done.stdout.splitlines()
    assert (state, code, has_facts, after) == ("failed", "no_space", "True", "updated")
    assert "`kensho gc` would free 2 MiB" in advice


# --- several processes ---


@pytest.fixture
def busy(machine: Machine) -> Iterator[Machine]:
    """A machine that pulls 24 MiB over HTTP."""
    machine.world.publish("voice", "2.0", model_files(weights(5, count=48, size=512 << 10)))
    with Origin(machine.world.folder) as origin:
        machine.init(origin.url)
        yield machine


def test_two_pulls_at_once_never_mix_and_one_of_them_brings_the_model(busy: Machine) -> None:
    pulls = [subprocess.Popen(busy.command("pull", "voice"), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(json.loads(pull.communicate()[0].splitlines()[-1]), pull.returncode) for pull in pulls]
    assert any(code == 0 for _, code in ends)
    for summary, code in ends:
        assert code == 0 or summary["error"] == "store_busy", summary
    assert busy.kensho("verify", "--full")["damaged"] == []
    assert busy.version() == "2.0"
    assert busy.kensho("pull")["models"][0]["state"] == "current"  # type: ignore[index]


def test_checks_and_looks_during_a_pull_find_nothing_wrong(busy: Machine) -> None:
    busy.kensho("pin", "voice", "1.0")
    with subprocess.Popen(busy.command("pull", "voice"), stdout=subprocess.PIPE, text=True) as pull:
        looks = 0
        while pull.poll() is None:
            assert busy.kensho("verify", "--full")["damaged"] == []
            assert busy.kensho("status")["state"] in ("empty", "ready")
            looks += 1
        summary = json.loads(str(pull.stdout.read()).splitlines()[-1]) if pull.stdout else {}
    assert (pull.returncode, looks > 0) == (0, True), summary
    assert busy.kensho("verify", "--full")["damaged"] == []


def test_gc_repair_and_rollback_during_a_pull_wait_for_nobody_and_break_nothing(busy: Machine) -> None:
    with subprocess.Popen(busy.command("pull", "voice"), stdout=subprocess.DEVNULL) as pull:
        while pull.poll() is None:
            for argv in (["gc"], ["repair"], ["pull", "voice"]):
                summary = busy.kensho(*argv)
                assert summary["ok"] or summary["error"] == "store_busy", summary
    assert pull.returncode in (0, 1)
    assert busy.kensho("pull", "voice")["code"] == 0
    assert busy.kensho("verify", "--full")["damaged"] == []
