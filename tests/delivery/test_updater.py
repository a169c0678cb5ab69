"""Pulling: only what is missing travels, nothing wrong is visible, and what fails leaves the old version running."""

import threading
from pathlib import Path

import pytest

from kensho.base.errors import DigestMismatch, NotEnoughSpace, NotInstalled, StoreBusy, TransportError
from kensho.base.events import ChunkRejected, DownloadProgress, Event, ManifestAccepted, UpdateApplied
from kensho.delivery.checker import verify
from kensho.delivery.store import Store
from kensho.delivery.transfer import ATTEMPTS, MAX_WRONG
from kensho.testing.client import FIRST, SECOND, Client, model_files, weights
from kensho.testing.disk import FaultyDisk
from kensho.testing.memory_source import Fault
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store


def test_a_pull_makes_exactly_the_published_files_visible(client: Client, world: SimulatedRepository) -> None:
    source = world.source()
    report = client.pull(source)
    assert [(r.model, r.version, r.state, r.error) for r in report.models] == [("voice", "1.0", "updated", None)]
    assert client.content() == model_files(FIRST)
    assert (report.bytes_fetched, report.requests) == (source.bytes_fetched, source.requests)
    assert report.requests - report.requests_metadata == len(source.ranges) == 1
    assert (report.bytes_reused, report.bytes_patched) == (0, 0)
    assert not list((client.root / "staging").iterdir())
    progress = [(event.done, event.total) for event in client.of(DownloadProgress)]
    assert progress == sorted(progress)
    assert progress[-1][0] == progress[-1][1] == sum(map(len, model_files(FIRST).values()))
    assert [event.version for event in client.of(UpdateApplied)] == ["1.0"]
    assert len(client.of(ManifestAccepted)) == 1


def test_a_second_pull_moves_nothing(client: Client, world: SimulatedRepository) -> None:
    client.pull(world.source())
    source = world.source()
    report = client.pull(source, models=())
    assert [(r.version, r.state) for r in report.models] == [("1.0", "current")]
    assert source.ranges == []
    assert report.requests == report.requests_metadata == 2
    assert report.bytes_reused == 0
    assert len(client.of(UpdateApplied)) == 1


def test_an_update_fetches_only_the_chunks_that_are_new(
    client: Client, world: SimulatedRepository, grown: SimulatedRepository
) -> None:
    client.pull(world.source())
    source = grown.source()
    report = client.pull(source)
    assert (report.models[0].version, report.models[0].state) == ("2.0", "updated")
    assert client.content() == model_files(SECOND)
    [(_, _, length)] = source.ranges
    assert length <= 20_100
    assert report.bytes_reused >= 5 * 20_000
    assert client.store.model("voice").previous == "1.0"


def test_bytes_of_another_model_are_not_fetched_again(client: Client, grown: SimulatedRepository) -> None:
    client.pull(grown.source())
    source = grown.source()
    client.pull(source, models=["other"])
    assert client.content("other") == model_files([FIRST[0], weights(3)[0]])
    assert sum(length for _, _, length in source.ranges) < 21_000


def test_a_plan_says_what_the_pull_then_does_and_changes_nothing(client: Client, grown: SimulatedRepository) -> None:
    [plan] = client.updater(grown.source()).plan(["voice"])
    assert not list((client.root / "blobs").iterdir())
    source = grown.source()
    client.pull(source)
    assert plan.bytes_fetch == sum(length for _, _, length in source.ranges)
    assert plan.requests == len(source.ranges)
    assert (plan.model, plan.version, plan.bytes_reuse) == ("voice", "2.0", 0)


def test_several_connections_bring_the_same(client: Client, grown: SimulatedRepository) -> None:
    client.pull(grown.source(), connections=4, models=["voice", "other"])
    assert client.content() == model_files(SECOND)


# --- sources that fail ---


def test_wrong_bytes_are_refused_blamed_and_fetched_from_another_source(
    client: Client, world: SimulatedRepository
) -> None:
    poisoned, honest = world.source("poisoned"), world.source("honest")
    poisoned.faults["packs/*"] = Fault("corrupt")
    assert client.pull(poisoned, honest).models[0].state == "updated"
    assert client.content() == model_files(FIRST)
    assert {event.source for event in client.of(ChunkRejected)} == {"poisoned"}
    [pack] = [data for path, data in honest.files.items() if path.startswith("packs/")]
    assert sum(length for _, _, length in honest.ranges) == len(pack)
    assert len(poisoned.ranges) == 1


def test_wrong_bytes_from_everybody_end_the_pull_and_the_old_version_stays(
    client: Client, world: SimulatedRepository, grown: SimulatedRepository
) -> None:
    client.pull(world.source())
    source = grown.source()
    source.faults["packs/*"] = Fault("corrupt")
    report = client.pull(source)
    assert (report.models[0].state, report.models[0].version) == ("failed", "1.0")
    assert isinstance(report.first_error, DigestMismatch)
    assert client.content() == model_files(FIRST)


def test_a_chunk_that_is_wrong_once_costs_only_itself(client: Client, world: SimulatedRepository) -> None:
    source = world.source()
    source.faults["packs/*"] = Fault("corrupt", times=1)
    assert client.pull(source).models[0].state == "updated"
    again = source.ranges[1]
    assert again[2] < 25_000
    assert len(client.of(ChunkRejected)) == 1


def test_a_source_of_nothing_but_wrong_bytes_is_not_downloaded_three_times(
    client: Client, world: SimulatedRepository
) -> None:
    source = world.source()
    for path in [path for path in source.files if path.startswith("packs/")]:
        source.files[path] = bytes(len(source.files[path]))
    report = client.pull(source)
    assert isinstance(report.first_error, DigestMismatch)
    assert len(client.of(ChunkRejected)) == MAX_WRONG * ATTEMPTS


def test_a_cut_goes_on_from_the_byte_that_was_reached(client: Client, world: SimulatedRepository) -> None:
    source = world.source()
    source.faults["packs/*"] = Fault("truncate", times=1)
    whole = world.source()
    Client(client.root.with_name("other"), world).pull(whole)
    assert client.pull(source).models[0].state == "updated"
    assert source.bytes_fetched == whole.bytes_fetched
    assert client.content() == model_files(FIRST)


def test_a_source_that_goes_away_leaves_chunks_that_the_next_pull_does_not_fetch(
    client: Client, world: SimulatedRepository
) -> None:
    source = world.source()
    source.faults["packs/*"] = Fault("truncate")
    first = client.pull(source)
    assert isinstance(first.first_error, TransportError)
    assert client.store.installed() == []
    fetched = source.bytes_fetched
    again = world.source()
    assert client.pull(again).models[0].state == "updated"
    pack = next(path for path in world.source().files if path.startswith("packs/"))
    whole = len(world.source().files[pack])
    [(_, start, length)] = again.ranges
    assert start + length == whole
    assert length < whole, fetched


def test_a_refresh_that_cannot_be_made_changes_nothing(client: Client, world: SimulatedRepository) -> None:
    client.pull(world.source())
    source = world.source()
    source.is_offline = True
    for ask in (lambda: client.pull(source), lambda: client.updater(source).plan(["voice"])):
        with pytest.raises(TransportError):
            ask()
    assert client.content() == model_files(FIRST)


def test_one_model_that_fails_does_not_stop_another(client: Client, grown: SimulatedRepository) -> None:
    source = grown.source()
    source.faults["targets/voice/*"] = Fault("missing")
    report = client.pull(source, models=["voice", "other"])
    assert [(r.model, r.state) for r in report.models] == [("voice", "failed"), ("other", "updated")]


def test_an_unknown_model_is_refused_with_the_list_of_what_there_is(client: Client, grown: SimulatedRepository) -> None:
    for models in (["none"], []):
        with pytest.raises(NotInstalled) as caught:
            client.pull(grown.source(), models=models)
        assert "other, voice" in caught.value.advice


# --- the disk ---


def test_too_little_space_is_refused_before_the_first_chunk(ram: Path, world: SimulatedRepository) -> None:
    client = Client(ram / "full", world, disk=FaultyDisk(free_bytes=100_000))
    source = world.source()
    report = client.pull(source)
    assert isinstance(report.first_error, NotEnoughSpace)
    assert source.ranges == []
    with pytest.raises(NotEnoughSpace):
        client.updater(world.source()).plan(["voice"])


def test_where_links_are_refused_a_pull_copies_and_asks_for_the_space(ram: Path, world: SimulatedRepository) -> None:
    client = Client(ram / "fat", world, disk=FaultyDisk(has_links=False))
    linked = Client(ram / "linked", world)
    sizes = [made.updater(world.source()).plan(["voice"])[0].bytes_disk_needed for made in (client, linked)]
    assert sizes[0] > sizes[1] + 120_000
    client.pull(world.source())
    assert client.content() == model_files(FIRST)
    before = [path.stat() for path in sorted(client.store.model("voice").folder.iterdir())]
    assert client.pull(world.source()).models[0].state == "current"
    after = [path.stat() for path in sorted(client.store.model("voice").folder.iterdir())]
    assert after == before, "a copy that is right is not copied again"
    assert not verify(client.store, is_full=False, clock=client.clock, emit=client.events.append).bytes_hashed


def test_a_pull_waits_for_nobody(client: Client, world: SimulatedRepository) -> None:
    other = Store.open(client.root, disk=FaultyDisk())
    with other.writing(), pytest.raises(StoreBusy):
        client.pull(world.source())
    other.close()


def test_a_store_that_lost_its_database_finds_its_blobs_again(client: Client, world: SimulatedRepository) -> None:
    client.pull(world.source())
    client.store.close()
    for path in client.root.glob("state.db*"):
        path.unlink()
    again = Client(client.root, world)
    assert again.store.installed() == []
    source = world.source()
    assert again.pull(source).models[0].state == "updated"
    assert source.ranges == []
    assert again.content() == model_files(FIRST)


@pytest.mark.parametrize("connections", [1, 4])
def test_an_interrupted_pull_leaves_no_thread_and_no_lock(
    client: Client, world: SimulatedRepository, connections: int
) -> None:
    updater = client.updater(world.source(), connections=connections)
    threads = threading.active_count()
    count = 0

    def press(event: Event) -> None:
        nonlocal count
        count += isinstance(event, DownloadProgress)
        if count == 4:
            count += 1
            raise KeyboardInterrupt

    updater._emit = press
    with pytest.raises(KeyboardInterrupt):
        updater.pull(["voice"])
    assert threading.active_count() == threads
    assert client.store.installed() == []
    source = world.source()
    assert client.pull(source).models[0].state == "updated"
    assert sum(length for _, _, length in source.ranges) <= 100_000, "what had arrived is used"
