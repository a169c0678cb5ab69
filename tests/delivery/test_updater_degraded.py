"""What cannot be had is skipped, stood in for and remembered; a network that goes away is no reason to install less."""

from pathlib import Path

import pytest

from kensho.base.errors import NotFoundAtSource
from kensho.base.events import FallbackActivated, ModelUnavailable
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.delivery.acceptance import SignedReleases
from kensho.delivery.layout import pack_path
from kensho.delivery.manifest import dump_manifest
from kensho.delivery.releases import ReleaseRef
from kensho.delivery.sources import Source
from kensho.testing.client import FIRST, Client, model_files, weights
from kensho.testing.disk import FaultyDisk
from kensho.testing.memory_source import Fault, MemorySource
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store


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
