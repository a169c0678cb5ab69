"""The status is the worst of what there is, says since when and what ends it, and looking leaves no trace."""

import json
from pathlib import Path

import pytest

from kensho.app import Kensho
from kensho.app.deliveries import Deliveries
from kensho.app.doctor import examine
from kensho.app.status import LastCheck, LoadedVersion, ModelStatus, Updates, make_status, with_loaded
from kensho.base.events import Event, RepairPostponed
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.delivery.manifest import dump_manifest
from kensho.settings import Settings
from kensho.testing.client import FIRST, Client, model_files, weights
from kensho.testing.memory_source import Fault, MemorySource
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

READY = ModelStatus("voice", "1.0", None, "ready", 100)
DEGRADED = replace(READY, model="image", state="degraded", reason="a.bin: not found")
ABSENT = replace(READY, model="extra", version="", state="degraded", reason="2.0 cannot be had")
DAMAGED = replace(READY, model="other", state="damaged")
DAY = 86400.0


def test_the_worst_model_decides_and_nothing_installed_is_empty() -> None:
    words = {
        (): "empty", (READY,): "ready", (READY, DEGRADED): "degraded", (READY, ABSENT): "degraded",
        (ABSENT,): "empty", (READY, DEGRADED, DAMAGED): "damaged",
    }  # fmt: skip
    for models, word in words.items():
        status = make_status(models, (), "http://x")
        assert status.state == word
        assert status.sentence.endswith(".")
        json.dumps(status.as_json())
    assert "2.0 cannot be had" in make_status((ABSENT,), (), None).sentence


def test_the_last_check_is_the_latest_and_every_kind_is_there() -> None:
    checks = (LastCheck("scrub", 9.0), LastCheck("full", 5.0))
    found = make_status((READY,), checks, None).as_json()
    assert found["last_check"] == {"kind": "scrub", "at": 9.0}
    assert found["checks"] == {"scrub": 9.0, "full": 5.0}
    assert make_status((READY,), (), None).as_json()["last_check"] is None


def test_expired_metadata_is_said_and_is_no_worse_state() -> None:
    status = make_status((READY,), (), None, Updates(0.0, 10 * DAY, is_expired=True))
    assert status.state == "ready"
    assert "Updates are refused" in status.sentence and "1970-01-11" in status.sentence
    assert "refused" not in make_status((READY,), (), None, Updates(0.0, DAY, is_expired=False)).sentence


def test_a_version_that_is_being_prepared_is_said_and_degrades_nothing() -> None:
    store = make_status((READY,), (), None)
    status = with_loaded(store, {"voice": LoadedVersion(version="0.9", tier="raw", is_upgrading=False)})
    assert (status.state, status.sentence) == (store.state, store.sentence)
    (model,) = status.models
    assert (model.version, model.answering, model.tier, model.is_upgrading) == ("1.0", "0.9", "raw", True)
    same = with_loaded(store, {"voice": LoadedVersion(version="1.0", tier="raw", is_upgrading=False)})
    assert same.models[0].is_upgrading is False


def test_a_version_that_cannot_be_used_here_is_a_degradation_with_its_reason_since_when_and_what_ends_it() -> None:
    loaded = LoadedVersion(
        version="0.9", tier="mapped", is_upgrading=False, wanted_version="1.0", kept_because="no", kept_since_wall_s=7.0
    )
    status = with_loaded(make_status((READY, DAMAGED), (), None), {"voice": loaded, "other": loaded})
    voice, other = status.models
    assert (voice.state, voice.reason, voice.since_s) == ("degraded", "1.0 cannot be used here: no", 7.0)
    assert voice.instead == "0.9 answers" and "tried again" in voice.ends
    assert other.state == "damaged"
    assert with_loaded(make_status((READY,), (), None), {"voice": loaded}).sentence.startswith("Degraded, and working")
    assert with_loaded(make_status((), (), None), {"voice": loaded}).models == ()


# --- of a store ---


@pytest.fixture
def world(tmp_path: Path) -> SimulatedRepository:
    from kensho.testing.client import NOW

    made = SimulatedRepository(tmp_path / "world", now=NOW)
    made.publish("voice", "1.0", model_files(FIRST))
    return made


@pytest.fixture
def client(tmp_path: Path, world: SimulatedRepository) -> Client:
    return Client(tmp_path / "store", world)


def deliveries(client: Client, **settings: object) -> Deliveries:
    made = Settings(store=client.root, **settings)  # type: ignore[arg-type]
    return Deliveries(made, client_version="0.1.0", clock=client.clock, emit=client.events.append)


def test_asking_for_the_status_leaves_no_trace(client: Client, world: SimulatedRepository) -> None:
    client.pull(world.source())
    path = client.store.model("voice").folder / "model.safetensors"
    path.chmod(0o644)
    path.write_bytes(bytes(path.stat().st_size))
    client.events.clear()
    before = (client.store.state.records(), client.store.state.checks())
    status = deliveries(client).status()
    assert status.state == "damaged"
    assert "1.0 model.safetensors is damaged" in status.models[0].reason
    assert (client.store.state.records(), client.store.state.checks()) == before
    assert client.events == []


def test_the_status_of_a_fresh_pull_has_its_check_and_when_every_byte_was_verified(
    client: Client, world: SimulatedRepository
) -> None:
    began = client.clock.wall_s()
    client.pull(world.source())
    status = deliveries(client).status()
    assert (status.state, status.last_check and status.last_check.kind) == ("ready", "load")
    assert status.models[0].verified_at_s == pytest.approx(began, abs=1)
    assert status.updates and not status.updates.is_expired


def test_metadata_that_has_expired_is_said_while_the_model_works(client: Client, world: SimulatedRepository) -> None:
    client.pull(world.source())
    client.clock.sleep(400 * DAY)
    status = deliveries(client).status()
    assert status.state == "ready"
    assert status.updates and status.updates.is_expired
    assert "Updates are refused" in status.sentence


def test_a_model_that_cannot_be_had_is_there_with_since_instead_and_end(
    client: Client, world: SimulatedRepository
) -> None:
    source = world.source()
    world.publish("extra", "1.0", model_files(weights(7)), is_required=False, fallback_model="voice")
    client.pull(source)
    lacking = world.source()
    for path in lacking.files.keys() - source.files.keys():
        if path.startswith("packs/"):
            lacking.faults[path] = Fault("missing")
    client.pull(lacking, models=["extra"])
    began = client.clock.wall_s()
    client.clock.sleep(DAY)
    made = deliveries(client)
    status = made.status()
    assert (status.state, [m.model for m in status.models]) == ("degraded", ["extra", "voice"])
    [extra, _] = status.models
    assert (extra.version, extra.state, extra.instead) == ("", "degraded", "model voice answers")
    assert extra.since_s == pytest.approx(began, abs=60)
    assert "kensho pull" in extra.ends
    assert made.fallback_of("extra") == "voice"
    client.pull(world.source(), models=())
    assert made.status().state == "ready"


def test_files_that_could_not_be_had_are_named_with_what_stands_in_for_them(
    client: Client, world: SimulatedRepository
) -> None:
    """voice 2.0: extra.bin is optional, main.bin falls back to spare.bin; the source has neither."""
    base = world.source()
    more = {"extra_bin": b"extra" * 3000, "main_bin": b"main" * 3000, "spare_bin": b"spare" * 3000}
    world.publish("voice", "1.9", model_files(FIRST, **more))
    manifest = world.manifest("voice", "1.9")
    flags = {"extra.bin": (False, None), "main.bin": (True, "spare.bin")}
    files = tuple(
        replace(file, is_required=flags[file.path][0], fallback=flags[file.path][1]) if file.path in flags else file
        for file in manifest.files
    )
    signed = dump_manifest(replace(manifest, version="2.0", release=3, files=files))
    world.sign("voice", "2.0", 3, signed)
    source = world.source()
    [pack] = [path for path in source.files.keys() - base.files.keys() if path.startswith("packs/")]
    for content in (b"extra" * 3000, b"main" * 3000):
        _spoil_chunk(client, source, pack, content)
    began = client.clock.wall_s()
    assert client.pull(source).models[0].state == "degraded"
    client.clock.sleep(DAY)
    made = deliveries(client)
    [voice] = made.status().models
    assert (made.status().state, voice.version) == ("degraded", "2.0")
    assert voice.instead == "nothing for extra.bin; spare.bin instead of main.bin"
    assert voice.since_s == pytest.approx(began, abs=60)
    assert "next pull" in voice.ends
    assert client.pull(source).models[0].state == "degraded"
    assert made.status().models[0].since_s == voice.since_s, "trying again does not make it younger"
    assert client.pull(world.source()).models[0].state == "updated"
    assert made.status().state == "ready"
    assert client.store.state.shortfalls() == {}


def _spoil_chunk(client: Client, source: MemorySource, pack: str, content: bytes) -> None:
    [plan] = client.updater(source).plan(["voice"])
    for chunk in (c for file in plan.files if file.digest == digest_of(content) for c in file.chunks):
        body = bytearray(source.files[pack])
        body[chunk.pack_offset] ^= 1
        source.files[pack] = bytes(body)


def test_a_shortfall_of_another_version_says_nothing_after_a_rollback(
    client: Client, world: SimulatedRepository
) -> None:
    client.pull(world.source())
    from kensho.delivery.installed import Shortfall

    client.store.state.put_shortfall(Shortfall("voice", "2.0", 1.0, "gone", "never"))
    [voice] = deliveries(client).status().models
    assert (voice.state, voice.since_s, voice.ends) == ("ready", None, "")


# --- in the background ---


def test_a_scrub_that_cannot_mend_says_so_and_tries_again_later(client: Client, world: SimulatedRepository) -> None:
    client.pull(world.source())
    path = client.store.model("voice").folder / "model.safetensors"
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(50_000)
        file.write(b"rot")
    made = deliveries(client, network=False)
    for _ in range(12):
        made.scrub()
        client.clock.sleep(7 * DAY / 20)
    assert len(client.of(RepairPostponed)) >= 1
    client.store.state.set_setting("source", world.folder.as_uri())
    healed = deliveries(client)
    for _ in range(20):
        healed.scrub()
        client.clock.sleep(7 * DAY / 20)
    assert client.content() == model_files(FIRST)
    assert healed.status().state == "ready"


def test_a_scrub_without_a_store_waits_for_one(tmp_path: Path, client: Client) -> None:
    events: list[Event] = []
    made = Deliveries(Settings(store=tmp_path / "none"), client_version="0.1.0", clock=client.clock, emit=events.append)
    assert made.scrub() > 1.0
    assert events == []


def test_a_pull_waits_a_random_part_of_its_jitter(client: Client, world: SimulatedRepository) -> None:
    client.store.state.set_setting("source", world.folder.as_uri())
    waits = []
    for _ in range(5):
        before = client.clock.monotonic_s()
        deliveries(client, pull_jitter_s=600.0).pull(["voice"])
        waits.append(client.clock.monotonic_s() - before)
    assert all(0 <= wait < 601 for wait in waits)
    assert len(set(waits)) > 1
    before = client.clock.monotonic_s()
    deliveries(client).pull(["voice"])
    assert client.clock.monotonic_s() - before < 1


# --- doctor ---


def test_the_doctor_knows_expired_metadata_and_bytes_that_nobody_read_for_long(
    client: Client, world: SimulatedRepository
) -> None:
    client.store.state.set_setting("source", world.folder.as_uri())
    app = Kensho(Settings(store=client.root, network=False), clock=client.clock, has_log=False)

    def look() -> dict[str, tuple[bool, str]]:
        return {check.name: (check.is_ok, check.found) for check in examine(app)}

    assert look()["updates"] == (True, "no metadata yet: nothing was pulled")
    assert look()["readings"] == (True, "nothing is installed")
    client.pull(world.source())
    assert look()["updates"][0]
    assert "no full reading" in look()["readings"][1]
    app.verify(is_full=True)
    client.clock.sleep(29 * DAY)
    assert look()["readings"][0]
    client.clock.sleep(2 * DAY)
    found = look()
    assert not found["readings"][0] and "31.0 days ago" in found["readings"][1]
    assert not found["updates"][0] and "updates are refused" in found["updates"][1]
    assert all(check.advice for check in examine(app) if not check.is_ok)
    app.close()
