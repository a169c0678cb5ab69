"""Going back is local and checked; what is needed is never removed."""

import errno
import os
from pathlib import Path

import pytest

from kensho.base.errors import Damaged, NotInstalled
from kensho.base.events import RolledBack
from kensho.delivery.checker import verify
from kensho.delivery.leases import lease_version
from kensho.delivery.retention import STAGING_MAX_AGE_S, gc, pin, reclaimable_bytes, rollback
from kensho.testing.client import FIRST, SECOND, Client, model_files, weights
from kensho.testing.disk import FaultyDisk
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store


@pytest.fixture
def updated(client: Client, world: SimulatedRepository, grown: SimulatedRepository) -> Client:
    client.pull(world.source())
    client.pull(grown.source())
    client.events.clear()
    return client


def _rollback(client: Client, to: str | None = None) -> str:
    return rollback(client.store, "voice", to, clock=client.clock, emit=client.events.append)


def test_rolling_back_switches_to_the_previous_version_and_back_again(updated: Client) -> None:
    assert _rollback(updated) == "1.0"
    assert updated.content() == model_files(FIRST)
    [event] = updated.of(RolledBack)
    assert (event.from_version, event.to_version) == ("2.0", "1.0")
    assert _rollback(updated) == "2.0"
    assert updated.content() == model_files(SECOND)
    assert _rollback(updated, "2.0") == "2.0"
    assert updated.store.model("voice").previous == "1.0"


def test_a_version_that_is_not_here_cannot_be_gone_back_to(client: Client, world: SimulatedRepository) -> None:
    client.pull(world.source())
    for to in (None, "0.9"):
        with pytest.raises(NotInstalled):
            _rollback(client, to)
    with pytest.raises(NotInstalled):
        rollback(client.store, "none", clock=client.clock, emit=client.events.append)


def test_a_damaged_version_is_not_switched_to(updated: Client) -> None:
    path = updated.store.versions.path("voice", "1.0") / "model.safetensors"
    path.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(Damaged):
        _rollback(updated)
    assert updated.store.model("voice").version == "2.0"


def test_a_pull_after_a_rollback_goes_forward_unless_pinned(updated: Client, grown: SimulatedRepository) -> None:
    _rollback(updated)
    pin(updated.store, "voice", "1.0")
    assert updated.pull(grown.source()).models[0].version == "1.0"
    pin(updated.store, "voice", None)
    source = grown.source()
    assert updated.pull(source).models[0].version == "2.0"
    assert source.ranges == []
    with pytest.raises(NotInstalled):
        pin(updated.store, "none", None)


def test_gc_frees_what_it_said_and_the_rest_stays_verified(updated: Client, world: SimulatedRepository) -> None:
    assert gc(updated.store, clock=updated.clock) == 0
    # A third version without a network: the first one, published again as 3.0 by hand.
    updated.store.state.switch("voice", "1.0")
    updated.store.state.switch("voice", "2.0")
    with updated.store.state._writing() as db:
        db.execute("UPDATE models SET previous = NULL")
    expected = reclaimable_bytes(updated.store)
    assert expected == len(model_files(FIRST)["model.safetensors"])
    freed = gc(updated.store, clock=updated.clock)
    assert freed >= expected
    assert [release.version for release in updated.store.state.releases()] == ["2.0"]
    assert not updated.store.versions.path("voice", "1.0").exists()
    report = verify(updated.store, is_full=False, clock=updated.clock, emit=updated.events.append)
    assert (report.damaged, report.bytes_hashed) == ((), 0), "records follow the unlinking"
    assert updated.content() == model_files(SECOND)


def test_gc_does_not_vouch_for_a_file_that_was_touched_before(updated: Client) -> None:
    path = updated.store.model("voice").folder / "model.safetensors"
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"damage")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    gc(updated.store, clock=updated.clock)
    assert verify(updated.store, is_full=False, clock=updated.clock, emit=updated.events.append).damaged


def test_gc_gives_up_old_partial_files_and_keeps_young_ones(updated: Client) -> None:
    staging = updated.root / "staging"
    now = updated.clock.wall_s()
    for name, age_s in (("young.part", 60.0), ("old.part", STAGING_MAX_AGE_S + 60), ("version.new", 0.0)):
        (staging / name).write_bytes(b"x")
        os.utime(staging / name, (now - age_s, now - age_s))
    gc(updated.store, clock=updated.clock)
    assert [path.name for path in staging.iterdir()] == ["young.part"]


def test_a_reader_keeps_what_gc_removes(updated: Client) -> None:
    path = updated.store.versions.path("voice", "1.0") / "model.safetensors"
    with updated.store.state._writing() as db:
        db.execute("UPDATE models SET previous = NULL")
    with path.open("rb") as reader:
        gc(updated.store, clock=updated.clock)
        assert reader.read() == model_files(FIRST)["model.safetensors"]


def _grow(client: Client, grown: SimulatedRepository, scratch: Path, *versions: str) -> list[int]:
    """Publish and pull further versions; the bytes that each pull freed."""
    made = grown.copy(scratch)
    freed = []
    for version in versions:
        made.publish("voice", version, model_files(weights(int(version[0]))))
        freed.append(client.pull(made.source()).bytes_freed)
    return freed


def _versions(client: Client) -> set[str]:
    folders = {path.name for path in (client.root / "versions" / "voice").iterdir()}
    assert folders == {release.version for release in client.store.state.releases("voice")}
    return folders


def test_a_pull_removes_what_was_not_needed_before_it_either(
    updated: Client, grown: SimulatedRepository, tmp_path: Path
) -> None:
    assert _versions(updated) == {"1.0", "2.0"}
    first, second = _grow(updated, grown, tmp_path, "3.0", "4.0")
    assert first == 0
    assert second > 100_000
    assert _versions(updated) == {"2.0", "3.0", "4.0"}
    assert _rollback(updated, "2.0") == "2.0", "two steps back, until the next update"
    assert _rollback(updated, "4.0") == "4.0"
    assert reclaimable_bytes(updated.store) > 0
    assert gc(updated.store, clock=updated.clock) > 0
    assert _versions(updated) == {"2.0", "4.0"}


def test_a_release_that_brings_old_bytes_back_takes_them_from_the_version_that_is_still_there(
    updated: Client, grown: SimulatedRepository, tmp_path: Path
) -> None:
    """A publisher takes back two bad releases by publishing the last good bytes again."""
    made = grown.copy(tmp_path)
    made.publish("voice", "3.0", model_files(weights(3)))
    updated.pull(made.source())
    made.publish("voice", "4.0", model_files(FIRST))
    source = made.source()
    assert updated.pull(source).models[0].version == "4.0"
    assert source.ranges == []
    assert updated.content() == model_files(FIRST)


def test_a_pull_that_has_no_room_removes_old_versions_first(
    ram: Path, world: SimulatedRepository, grown: SimulatedRepository, tmp_path: Path
) -> None:
    client = Client(ram / "s", world, disk=_Quota(1_700_000))
    client.pull(world.source())
    client.pull(grown.source())
    made = grown.copy(tmp_path)
    for version in ("3.0", "4.0"):
        made.publish("voice", version, model_files(weights(int(version[0]))))
        assert client.pull(made.source()).models[0].state == "updated"
        assert len(_versions(client)) == 3
    lease = lease_version(client.store.versions.path("voice", "2.0"))
    assert lease
    made.publish("voice", "5.0", model_files(weights(5, size=50_000)))
    [failed] = client.pull(made.source()).models
    assert failed.error and failed.error.facts["reclaimable_bytes"] == 0, "what is in use is not promised"
    lease.close()
    assert client.pull(made.source()).models[0].state == "updated"
    assert "2.0" not in _versions(client)
    client.store.close()


def test_a_disk_that_fills_up_under_a_pull_loses_an_old_version_and_the_pull_goes_on(
    ram: Path, world: SimulatedRepository, grown: SimulatedRepository, tmp_path: Path
) -> None:
    """Somebody else took the space that was there when the pull began."""
    client = Client(ram / "s", world, disk=_Filling())
    made = grown.copy(tmp_path)
    made.publish("voice", "3.0", model_files(weights(3)))
    for world_ in (world, grown, made):
        client.pull(world_.source())
    made.publish("voice", "4.0", model_files(weights(4)))
    assert isinstance(client.store.disk, _Filling)
    client.store.disk.until_gone = client.store.versions.path("voice", "1.0")
    source = made.source()
    assert client.pull(source).models[0].state == "updated"
    assert client.content() == model_files(weights(4))
    assert _versions(client) == {"2.0", "3.0", "4.0"}
    client.store.close()


class _Filling(FaultyDisk):
    """Full from the second chunk on, until that folder is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.until_gone: Path | None = None
        self._chunks = 0

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        if self.until_gone is not None and self.until_gone.exists() and len(data) > 10_000:
            self._chunks += 1
            if self._chunks > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
        super().write(fd, data, offset)


class _Quota(FaultyDisk):
    """A disk of so many bytes for blobs."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        self._size_bytes = size_bytes

    def free_bytes(self, path: Path) -> int:
        return self._size_bytes - sum(blob.stat().st_size for blob in (path / "blobs").iterdir())


def test_whole_files_of_an_unfinished_version_stay_for_a_week(updated: Client) -> None:
    now = updated.clock.wall_s()
    for name, age_s in (("a" * 64, 60.0), ("b" * 64, STAGING_MAX_AGE_S + 60)):
        path = updated.root / "blobs" / name
        path.write_bytes(b"x")
        os.utime(path, (now - age_s, now - age_s))
    gc(updated.store, clock=updated.clock)
    assert (updated.root / "blobs" / ("a" * 64)).exists()
    assert not (updated.root / "blobs" / ("b" * 64)).exists()


def test_a_version_in_use_or_pinned_stays_until_it_is_not(
    updated: Client, grown: SimulatedRepository, tmp_path: Path
) -> None:
    lease = lease_version(updated.store.versions.path("voice", "1.0"))
    assert lease
    _grow(updated, grown, tmp_path, "3.0", "4.0", "5.0")
    assert _versions(updated) == {"1.0", "3.0", "4.0", "5.0"}
    assert gc(updated.store, clock=updated.clock) > 0
    assert gc(updated.store, clock=updated.clock) == 0
    assert _versions(updated) == {"1.0", "4.0", "5.0"}
    assert not verify(updated.store, is_full=True, clock=updated.clock, emit=updated.events.append).damaged
    lease.close()
    pin(updated.store, "voice", "1.0")
    assert gc(updated.store, clock=updated.clock) == 0
    pin(updated.store, "voice", None)
    assert gc(updated.store, clock=updated.clock) > 0
    assert _versions(updated) == {"4.0", "5.0"}


def test_the_last_good_version_to_go_back_to_is_never_removed(
    updated: Client, grown: SimulatedRepository, tmp_path: Path
) -> None:
    path = updated.store.versions.path("voice", "2.0") / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    _grow(updated, grown, tmp_path, "3.0")
    gc(updated.store, clock=updated.clock)
    assert _versions(updated) == {"1.0", "2.0", "3.0"}, "2.0 is damaged: 1.0 is what one can go back to"
    assert _rollback(updated, "1.0") == "1.0"
    assert updated.content() == model_files(FIRST)
