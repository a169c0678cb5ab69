"""Pulling: only what is missing travels, nothing wrong is visible, and what fails leaves the old version running."""

import threading
from pathlib import Path

import pytest

from kensho.base.errors import (
    ClientTooOld,
    DigestMismatch,
    NotEnoughSpace,
    NotFoundAtSource,
    NotInstalled,
    StoreBusy,
    TransportError,
    TrustError,
)
from kensho.base.events import (
    ChunkRejected,
    DownloadProgress,
    Event,
    FallbackActivated,
    ManifestAccepted,
    ManifestRejected,
    ModelUnavailable,
    UpdateApplied,
)
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.delivery.acceptance import SignedReleases
from kensho.delivery.checker import verify
from kensho.delivery.layout import pack_path
from kensho.delivery.manifest import dump_manifest
from kensho.delivery.releases import ReleaseRef
from kensho.delivery.rollout import is_in_rollout
from kensho.delivery.sources import Source
from kensho.delivery.store import Store
from kensho.delivery.transfer import ATTEMPTS, MAX_WRONG
from kensho.testing.client import FIRST, SECOND, Client, model_files, weights
from kensho.testing.disk import FaultyDisk
from kensho.testing.memory_source import Fault, MemorySource
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


# --- releases that are refused ---


def test_a_manifest_for_a_newer_client_is_refused_and_the_old_version_stays(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    client.pull(world.source())
    later = world.copy(tmp_path)
    later.publish("voice", "2.0", model_files(SECOND), min_client="9.0")
    report = client.pull(later.source())
    assert isinstance(report.first_error, ClientTooOld)
    assert report.models[0].version == "1.0"
    assert len(client.of(ManifestRejected)) == 1
    assert client.updater(later.source(), client_version="9.1").pull().models[0].version == "2.0"


def _refusal(client: Client, made: SimulatedRepository) -> str:
    error = client.pull(made.source()).first_error
    assert isinstance(error, TrustError)
    assert client.content() == model_files(SECOND)
    return error.message


def test_a_manifest_that_is_signed_as_another_release_is_refused(
    client: Client, grown: SimulatedRepository, tmp_path: Path
) -> None:
    client.pull(grown.source())
    swapped = grown.copy(tmp_path)
    swapped.sign("voice", "3.0", 3, dump_manifest(grown.manifest("voice", "1.0")))
    assert "says voice 1.0" in _refusal(client, swapped)


def test_a_version_published_twice_with_other_files_is_refused(
    client: Client, grown: SimulatedRepository, tmp_path: Path
) -> None:
    client.pull(grown.source())
    rewritten = grown.copy(tmp_path)
    rewritten.sign("voice", "2.0", 3, dump_manifest(replace(grown.manifest("voice", "1.0"), version="2.0", release=3)))
    assert "published twice" in _refusal(client, rewritten)


def test_a_release_older_than_the_installed_one_is_refused(
    client: Client, grown: SimulatedRepository, tmp_path: Path
) -> None:
    client.pull(grown.source())
    withdrawn = grown.copy(tmp_path)
    withdrawn.sign("voice", "2.0", 1, dump_manifest(replace(grown.manifest("voice", "2.0"), release=1)))
    assert "installed already" in _refusal(client, withdrawn)


# --- degraded ---


def _with_flags(world: SimulatedRepository, scratch: Path) -> SimulatedRepository:
    """voice 2.0: extra.bin is optional, main.bin falls back to spare.bin; packs of their own, so that they can fail."""
    made = world.copy(scratch)
    more = {"extra_bin": b"extra" * 3000, "main_bin": b"main" * 3000, "spare_bin": b"spare" * 3000}
    made.publish("voice", "2.0-all", model_files(FIRST, **more))
    manifest = made.manifest("voice", "2.0-all")
    flags = {"extra.bin": (False, None), "main.bin": (True, "spare.bin")}
    files = tuple(
        replace(file, is_required=flags.get(file.path, (True, None))[0], fallback=flags.get(file.path, (True, None))[1])
        for file in manifest.files
    )
    made.sign("voice", "2.0", 3, dump_manifest(replace(manifest, version="2.0", release=3, files=files)))
    return made


def _lose(source: MemorySource, client: Client, *contents: bytes) -> None:
    """Spoil the encoded bytes of these files in the repository's packs."""
    lost = {digest_of(content) for content in contents}
    [plan] = client.updater(source).plan(["voice"])
    for chunk in (chunk for file in plan.files if file.digest in lost for chunk in file.chunks):
        body = bytearray(source.files[pack_path(chunk.pack)])
        body[chunk.pack_offset] ^= 1
        source.files[pack_path(chunk.pack)] = bytes(body)


def test_an_optional_file_is_skipped_and_a_fallback_stands_in_until_they_can_be_had(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    made = _with_flags(world, tmp_path)
    source = made.source()
    _lose(source, client, b"extra" * 3000, b"main" * 3000)
    report = client.pull(source)
    assert [(r.version, r.state) for r in report.models] == [("2.0", "degraded")]
    content = client.content()
    assert content["main.bin"] == b"spare" * 3000
    assert "extra.bin" not in content
    assert client.store.model("voice").is_degraded
    reasons = {event.path: event.fallback for event in client.of(FallbackActivated)}
    assert reasons == {"main.bin": "spare.bin", "extra.bin": "nothing (it is optional)"}
    assert client.pull(source).models[0].state == "degraded"
    assert client.pull(made.source()).models[0].state == "updated"
    assert client.content()["main.bin"] == b"main" * 3000
    assert client.content()["extra.bin"] == b"extra" * 3000
    assert not client.store.model("voice").is_degraded


def test_a_required_file_whose_fallback_fails_too_ends_the_pull(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    client.pull(world.source())
    source = _with_flags(world, tmp_path).source()
    _lose(source, client, b"spare" * 3000, b"main" * 3000)
    assert client.pull(source).models[0].state == "failed"
    assert client.store.model("voice").version == "1.0"


def test_a_network_that_goes_away_is_no_reason_to_install_less(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    source = _with_flags(world, tmp_path).source()
    source.faults["packs/*"] = Fault("offline")
    report = client.pull(source)
    assert report.models[0].state == "failed"
    assert not isinstance(report.first_error, NotFoundAtSource)


def _optional(world: SimulatedRepository, scratch: Path, *, is_required: bool = False) -> SimulatedRepository:
    """The world with model extra 1.0, for which voice answers where it cannot be had."""
    made = world.copy(scratch)
    files = model_files(weights(7))
    made.publish("extra", "1.0", files, is_required=is_required, fallback_model="voice")
    return made


def _without(made: SimulatedRepository, world: SimulatedRepository) -> MemorySource:
    """A source that has everything but the packs that `made` has more than `world`."""
    source = made.source()
    for path in source.files.keys() - world.source().files.keys():
        if path.startswith("packs/"):
            source.faults[path] = Fault("missing")
    return source


def test_an_optional_model_that_cannot_be_had_is_skipped_and_remembered(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    made = _optional(world, tmp_path)
    source = _without(made, world)
    began = client.clock.wall_s()
    report = client.pull(source, models=["voice", "extra"])
    assert [(r.model, r.version, r.state) for r in report.models] == [
        ("voice", "1.0", "updated"), ("extra", "", "degraded"),
    ]  # fmt: skip
    assert report.first_error is None
    [event] = client.of(ModelUnavailable)
    assert (event.model, event.version, event.fallback) == ("extra", "1.0", "voice")
    client.clock.sleep(3600)
    assert client.pull(source, models=()).models[0].state == "degraded", "a pull without names tries it again"
    lacking = client.store.state.shortfalls()["extra"]
    assert (lacking.version, lacking.fallback_model) == ("1.0", "voice")
    assert began <= lacking.since < began + 60, "since the first time"
    assert "kensho pull" in lacking.ends
    assert client.pull(made.source(), models=()).models[0].state == "updated"
    assert client.store.state.shortfalls() == {}


def test_a_required_model_that_cannot_be_had_fails_and_is_remembered_with_its_fallback(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    source = _without(_optional(world, tmp_path, is_required=True), world)
    report = client.pull(source, models=["extra"])
    assert (report.models[0].state, isinstance(report.first_error, NotFoundAtSource)) == ("failed", True)
    assert client.store.state.shortfalls()["extra"].fallback_model == "voice"


def test_an_optional_model_without_room_is_skipped_and_more_space_would_end_it(
    ram: Path, world: SimulatedRepository, tmp_path: Path
) -> None:
    made = _optional(world, tmp_path)
    client = Client(ram / "small", world, disk=FaultyDisk(free_bytes=100_000))
    assert client.pull(made.source(), models=["extra"]).models[0].state == "degraded"
    assert "space" in client.store.state.shortfalls()["extra"].ends


def test_a_network_that_goes_away_is_a_failure_of_an_optional_model_too(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    source = _optional(world, tmp_path).source()
    source.faults["packs/*"] = Fault("offline")
    assert client.pull(source, models=["extra"]).models[0].state == "failed"
    assert client.store.state.shortfalls()["extra"].fallback_model == "voice", "it answers until the network is back"


def test_an_update_of_an_optional_model_that_fails_leaves_no_shortfall(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    made = _optional(world, tmp_path)
    client.pull(made.source(), models=["extra"])
    made.publish("extra", "2.0", model_files(weights(8)), is_required=False)
    source = made.source()
    source.faults["packs/*"] = Fault("missing")
    report = client.pull(source, models=["extra"])
    assert (report.models[0].state, report.models[0].version) == ("degraded", "1.0")
    assert client.store.state.shortfalls() == {}


def test_a_wanted_model_that_is_withdrawn_is_forgotten_and_an_installed_one_kept(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    made = _optional(world, tmp_path)
    client.pull(_without(made, world), models=["voice", "extra"])
    ends = [made.source(), made.source()]
    updater = client.updater(ends[0])
    updater._signed = _Withdrawn(updater._signed, "extra")
    assert [(r.model, r.state) for r in updater.pull().models] == [("extra", "current"), ("voice", "current")]
    assert client.store.state.shortfalls() == {}
    updater = client.updater(ends[1])
    updater._signed = _Withdrawn(updater._signed, "voice")
    client.pull(made.source(), models=["extra"])
    assert [(r.model, r.version) for r in updater.pull().models] == [("extra", "1.0"), ("voice", "1.0")]
    assert client.content() == model_files(FIRST)


class _Withdrawn:
    """Signed metadata from which one model was removed."""

    def __init__(self, signed: SignedReleases, model: str) -> None:
        self._signed, self._model = signed, model

    def refresh(self, source: Source) -> None:
        self._signed.refresh(source)

    def releases(self, model: str | None = None) -> list[ReleaseRef]:
        return [ref for ref in self._signed.releases(model) if ref.model != self._model]

    def fetch_document(self, source: Source, target: str) -> bytes:
        return self._signed.fetch_document(source, target)


# --- staged roll-out ---


def _staged(world: SimulatedRepository, scratch: Path, percent: int) -> SimulatedRepository:
    made = world.copy(scratch)
    made.publish("voice", "2.0", model_files(SECOND), rollout_percent=percent)
    return made


def test_machines_get_a_staged_release_by_their_own_id_and_the_rest_later(
    ram: Path, world: SimulatedRepository, tmp_path: Path
) -> None:
    made = _staged(world, tmp_path / "half", 50)
    salt, versions = made.manifest("voice", "2.0").rollout_salt, set()
    for number in range(4):
        client = Client(ram / str(number), world)
        client.store.state.set_setting("client_id", f"box {number}")
        client.pull(world.source())
        is_in = is_in_rollout(50, salt, f"box {number}")
        source = made.source()
        report = client.pull(source, models=["voice"] if number % 2 else ())
        assert [(r.version, r.state) for r in report.models] == [("2.0", "updated") if is_in else ("1.0", "current")]
        assert is_in or (source.ranges == [] and "other machines first" in report.models[0].reason)
        assert [plan.version for plan in client.updater(made.source()).plan(["voice"])] == (
            ["2.0"] if is_in else ["1.0"]
        )
        versions.add(report.models[0].version)
        later = made.copy(tmp_path / f"wide{number}")
        later.publish("voice", "3.0", model_files(weights(9)))
        assert client.pull(later.source()).models[0].version == "3.0"
        client.store.close()
    assert versions == {"1.0", "2.0"}


def test_a_machine_that_is_not_in_yet_installs_the_newest_release_it_may_take(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    source = _staged(world, tmp_path, 0).source()
    assert client.pull(source).models[0].version == "1.0"
    assert client.content() == model_files(FIRST)


def test_a_first_release_that_is_not_for_this_machine_yet_is_an_error_with_advice(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    made = world.copy(tmp_path)
    made.publish("new", "1.0", model_files(weights(7)), rollout_percent=0)
    report = client.pull(made.source(), models=["new"])
    assert isinstance(report.first_error, NotInstalled)
    assert "later" in report.first_error.advice


def test_a_pinned_version_is_taken_whatever_its_rollout(
    client: Client, world: SimulatedRepository, tmp_path: Path
) -> None:
    client.pull(world.source())
    client.store.state.pin("voice", "2.0")
    assert client.pull(_staged(world, tmp_path, 0).source()).models[0].version == "2.0"


def test_a_release_that_is_rolled_out_further_reaches_the_rest_and_is_no_update_for_the_first(
    ram: Path, world: SimulatedRepository, tmp_path: Path
) -> None:
    made, first, second = _staged(world, tmp_path, 50), Client(ram / "first", world), Client(ram / "second", world)
    for client, name in ((first, "box 1"), (second, "box 0")):
        client.store.state.set_setting("client_id", name)
        client.pull(world.source())
        client.pull(made.source())
    assert [client.store.model("voice").version for client in (first, second)] == ["2.0", "1.0"]
    made.publish("voice", "2.0", model_files(SECOND), rollout_percent=100)
    assert first.pull(made.source()).models[0].state == "current"
    assert second.pull(made.source()).models[0].state == "updated"
    manifests = {client.store.model("voice").manifest for client in (first, second)}
    assert len(manifests) == 1, "both know the newest terms"
    source = made.source()
    first.pull(source)
    assert source.requests == 2, "and nothing is fetched again"
    made.publish("voice", "2.0", model_files(SECOND), rollout_percent=0)
    assert first.pull(made.source()).models[0].version == "2.0", "who has it keeps it"


def test_the_id_of_a_machine_is_made_once_and_never_sent(client: Client, world: SimulatedRepository) -> None:
    source = world.source()
    client.pull(source)
    made = client.store.state.client_id()
    assert len(made) == 32
    client.pull(source)
    assert client.store.state.client_id() == made
    assert not any(made in str(request) for request in source.ranges)


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


def test_a_pinned_model_stays_at_its_version(
    client: Client, world: SimulatedRepository, grown: SimulatedRepository
) -> None:
    client.pull(world.source())
    client.store.state.pin("voice", "1.0")
    assert [(r.version, r.state) for r in client.pull(grown.source(), models=()).models] == [("1.0", "current")]
    client.store.state.pin("voice", None)
    assert client.pull(grown.source(), models=()).models[0].version == "2.0"


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
