"""Who must sign what: other keys, thresholds, keys that change, chains of roots."""

import json

import pytest
from securesystemslib.signer import CryptoSigner
from trusting import ROLES, Client, Publisher, day, refused

from kensho.base.errors import TrustError
from kensho.base.events import RootTrusted
from kensho.delivery.trust import MAX_NEW_ROOTS, Trust

pytestmark = pytest.mark.store

# --- signatures ---


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_what_another_key_signed_is_refused(role: str, client: Client, publisher: Publisher) -> None:
    publisher.signers[role] = [CryptoSigner.generate_ed25519()]
    publisher.publish(step=1)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, "signature")
    expected = "timestamp" if role == "timestamp" else f"1.{role}"
    if role != "timestamp":
        assert client.files()[f"{role}.json"] == publisher.source.files[f"metadata/{expected}.json"]


def test_a_key_of_one_role_does_not_sign_for_another(client: Client, publisher: Publisher) -> None:
    publisher.signers["timestamp"] = publisher.signers["targets"]
    publisher.publish(step=1)
    refused(client, publisher, "timestamp", "signature")


def test_a_threshold_needs_distinct_keys(client: Client, publisher: Publisher) -> None:
    second = CryptoSigner.generate_ed25519()
    publisher.root.add_key(second.public_key, "timestamp")
    publisher.root.roles["timestamp"].threshold = 2
    publisher.root.version = 2
    publisher.publish_root()
    publisher.publish(step=1)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert caught.value.facts["reason"] == "signature"
    forged = json.loads(publisher.source.files["metadata/timestamp.json"])
    forged["signatures"] *= 2
    publisher.source.files["metadata/timestamp.json"] = json.dumps(forged).encode()
    refused(client, publisher, "timestamp", "malformed")
    forged["signatures"][1] = {**forged["signatures"][0], "keyid": second.public_key.keyid}
    publisher.source.files["metadata/timestamp.json"] = json.dumps(forged).encode()
    refused(client, publisher, "timestamp", "signature")
    publisher.signers["timestamp"].append(second)
    publisher.publish()
    client.trust.refresh(publisher.source)


@pytest.mark.parametrize("role", ROLES)
def test_a_threshold_counts_keys_and_not_ids_of_keys(role: str, client: Client, publisher: Publisher) -> None:
    """GMS-2022-4197, CVE-2026-23992: one key under two ids would be two signatures."""
    (signer,) = publisher.signers[role]
    twin = type(signer.public_key).from_dict("ab" * 32, signer.public_key.to_dict())
    publisher.root.add_key(twin, role)
    publisher.root.roles[role].threshold = 2
    publisher.signers[role].append(CryptoSigner(signer._private_key, twin))
    publisher.root.version += 1
    publisher.publish_root()
    publisher.publish(step=1)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == (role, "signature")
    versions = {name: json.loads(client.files()[f"{name}.json"])["signed"]["version"] for name in ROLES}
    assert versions[role] == 1


# --- keys that change ---


@pytest.mark.parametrize("role", ROLES)
def test_a_key_can_be_replaced(role: str, client: Client, publisher: Publisher) -> None:
    publisher.replace_key(role)
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    assert [event.root_version for event in client.events if isinstance(event, RootTrusted)] == [2]
    assert client.files()["root.json"] == publisher.source.files["metadata/2.root.json"]
    assert Trust.initialise(client.folder, publisher.source.files["metadata/1.root.json"]) == 2


def test_a_replaced_key_signs_no_more(client: Client, publisher: Publisher) -> None:
    stolen = publisher.signers["timestamp"]
    publisher.replace_key("timestamp")
    publisher.signers["timestamp"] = stolen
    publisher.publish(step=1)
    with pytest.raises(TrustError) as caught:
        client.trust.refresh(publisher.source)
    assert (caught.value.facts["role"], caught.value.facts["reason"]) == ("timestamp", "signature")
    assert json.loads(client.files()["root.json"])["signed"]["version"] == 2  # the new root counts all the same


def test_cached_targets_of_a_replaced_key_count_no_more(client: Client, publisher: Publisher) -> None:
    publisher.replace_key("targets")
    publisher.source.files["metadata/timestamp.json"] = b"{}"
    with pytest.raises(TrustError):
        client.trust.refresh(publisher.source)
    with pytest.raises(TrustError, match="not signed"):
        client.trust.releases()


@pytest.mark.parametrize(
    ("version", "with_old_key", "reason"), [(2, False, "signature"), (3, True, "rollback"), (1, True, "rollback")]
)
def test_a_root_must_follow_the_trusted_one(
    version: int, with_old_key: bool, reason: str, client: Client, publisher: Publisher
) -> None:
    if not with_old_key:
        publisher.signers["root"] = [CryptoSigner.generate_ed25519()]
    publisher.root.version = version
    publisher.source.files["metadata/2.root.json"] = publisher.signed(publisher.root)
    refused(client, publisher, "root", reason)


def test_a_repository_recovers_from_a_thief_who_raised_the_version(client: Client, publisher: Publisher) -> None:
    publisher.timestamp.version = 10**9
    publisher.publish()
    client.trust.refresh(publisher.source)
    publisher.replace_key("timestamp")
    publisher.timestamp.version = 2
    publisher.publish()
    client.trust.refresh(publisher.source)
    assert client.files()["timestamp.json"] == publisher.source.files["metadata/timestamp.json"]


def test_a_machine_off_for_years_follows_the_chain_of_roots(client: Client, publisher: Publisher) -> None:
    for year in range(1, 6):
        publisher.root.expires = day(365 * (year + 1))
        publisher.replace_key("root")
    publisher.timestamp.expires = publisher.snapshot.expires = publisher.targets.expires = day(2000)
    publisher.publish(step=1)
    client.now = day(365 * 5)
    client.trust.refresh(publisher.source)
    assert json.loads(client.files()["root.json"])["signed"]["version"] == 6


def test_an_endless_chain_of_roots_ends(client: Client, publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kensho.delivery.trust.MAX_NEW_ROOTS", 3)
    assert MAX_NEW_ROOTS == 256
    for _ in range(5):
        publisher.root.version += 1
        publisher.publish_root()
    client.trust.refresh(publisher.source)
    assert json.loads(client.files()["root.json"])["signed"]["version"] == 4
    client.trust.refresh(publisher.source)
    assert json.loads(client.files()["root.json"])["signed"]["version"] == 6
