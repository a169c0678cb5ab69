"""Which release a pull takes: refused ones, staged ones, pinned ones."""

from pathlib import Path

import pytest

from kensho.base.errors import ClientTooOld, NotInstalled, TrustError
from kensho.base.events import ManifestRejected
from kensho.base.structs import replace
from kensho.delivery.manifest import dump_manifest
from kensho.delivery.rollout import is_in_rollout
from kensho.testing.client import FIRST, SECOND, Client, model_files, weights
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

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


def test_a_pinned_model_stays_at_its_version(
    client: Client, world: SimulatedRepository, grown: SimulatedRepository
) -> None:
    client.pull(world.source())
    client.store.state.pin("voice", "1.0")
    assert [(r.version, r.state) for r in client.pull(grown.source(), models=()).models] == [("1.0", "current")]
    client.store.state.pin("voice", None)
    assert client.pull(grown.source(), models=()).models[0].version == "2.0"
