"""What is older, expired or of two states is refused: rollback, freeze, mix-and-match."""

import pytest
from trusting import Client, Publisher, day, refused
from tuf.api.metadata import MetaFile

from kensho.base.errors import TrustError

pytestmark = pytest.mark.store

# --- rollback ---


def test_an_older_timestamp_is_refused(client: Client, publisher: Publisher) -> None:
    old = publisher.source.files["metadata/timestamp.json"]
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    publisher.source.files["metadata/timestamp.json"] = old
    refused(client, publisher, "timestamp", "rollback")


def test_a_new_timestamp_with_an_older_snapshot_is_refused(client: Client, publisher: Publisher) -> None:
    publisher.publish(step=3)
    client.trust.refresh(publisher.source)
    publisher.snapshot.version = 2
    publisher.timestamp.version += 1
    publisher.publish()
    refused(client, publisher, "timestamp", "rollback")


def test_a_new_snapshot_with_older_targets_is_refused(client: Client, publisher: Publisher) -> None:
    publisher.publish(step=3)
    client.trust.refresh(publisher.source)
    publisher.targets.version = 1
    publisher.snapshot.version += 1
    publisher.timestamp.version += 1
    publisher.publish()
    before = client.files()
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == ("snapshot", "rollback")
    after = client.files()
    assert after.pop("timestamp.json") == publisher.source.files["metadata/timestamp.json"]  # it passed its own checks
    before.pop("timestamp.json")
    assert after == before


def test_targets_that_vanish_from_the_snapshot_are_refused(client: Client, publisher: Publisher) -> None:
    publisher.snapshot.meta["other.json"] = MetaFile(1)
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    del publisher.snapshot.meta["other.json"]
    publisher.publish(step=1)
    with pytest.raises(TrustError, match="missing info"):
        client.trust.refresh(publisher.source)
    assert client.files()["snapshot.json"] == publisher.source.files["metadata/2.snapshot.json"]


# --- freeze ---


def test_a_frozen_repository_is_refused_after_expiry_and_its_releases_stay_known(
    client: Client, publisher: Publisher
) -> None:
    client.now = day(31)
    error = refused(client, publisher, "timestamp", "expired")
    assert "2026-12-20" in error.message
    assert "resign" in error.advice
    assert client.trust.releases()


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_new_metadata_that_has_expired_is_refused(role: str, client: Client, publisher: Publisher) -> None:
    getattr(publisher, role).expires = day(2)
    publisher.publish(step=1)
    client.now = day(3)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, "expired")
    assert client.files()[f"{role}.json"] == publisher.source.files[f"metadata/1.{role}.json"]


def test_an_expired_root_is_refused_but_a_newer_one_helps(client: Client, publisher: Publisher) -> None:
    publisher.timestamp.expires = publisher.snapshot.expires = publisher.targets.expires = day(900)
    publisher.publish(step=1)
    client.now = day(366)
    refused(client, publisher, "root", "expired")
    publisher.root.version, publisher.root.expires = 2, day(900)
    publisher.publish_root()
    client.trust.refresh(publisher.source)


def test_a_clock_set_back_does_not_thaw_old_metadata(client: Client, publisher: Publisher) -> None:
    client.now = day(29)
    client.trust.refresh(publisher.source)
    client.now = day(1)
    publisher.timestamp.expires = day(10)
    publisher.publish(step=1)
    refused(client, publisher, "timestamp", "expired")


def test_a_clock_set_forward_by_mistake_does_not_lock_the_store(client: Client, publisher: Publisher) -> None:
    client.now = day(30_000)
    refused(client, publisher, "root", "expired")
    client.now = day(1)
    client.trust.refresh(publisher.source)


# --- mix-and-match ---


@pytest.mark.parametrize("role", ["snapshot", "targets"])
def test_files_of_two_states_are_never_mixed(role: str, client: Client, publisher: Publisher) -> None:
    publisher.publish(step=1)
    other = getattr(publisher, role)
    other.expires = day(77)
    publisher.put(other)  # same version, well signed, another content
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, "mismatch")
    assert client.files()[f"{role}.json"] == publisher.source.files[f"metadata/1.{role}.json"]
