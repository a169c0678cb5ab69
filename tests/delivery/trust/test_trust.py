"""kensho.delivery.trust: what a refresh brings, documents, and the folder, which refused bytes never reach."""

import subprocess
import sys
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from trusting import DAY0, DOCUMENT, Client, Publisher, day

from kensho.base.errors import ConfigError, DigestMismatch, StoreBusy, TransportError, TrustError
from kensho.base.ids import digest_of
from kensho.delivery.trust import ReleaseRef, Trust
from kensho.testing.disk import FaultyDisk, Stopped
from kensho.testing.repository import MemorySource

pytestmark = pytest.mark.store

# --- the good case ---


def test_a_refresh_brings_the_releases_and_their_documents(client: Client, publisher: Publisher) -> None:
    (ref,) = client.trust.releases("voice")
    assert ref == ReleaseRef("voice", "1.0", 1, "voice/1.0/manifest.json", digest_of(DOCUMENT), len(DOCUMENT))
    assert client.trust.fetch_document(publisher.source, ref.target) == DOCUMENT
    assert client.trust.releases("other") == []
    assert client.trust.chunk_list_target(ref, ref.digest) == f"voice/chunks/{ref.digest}.chunks"
    assert client.files()["targets.json"] == publisher.source.files["metadata/1.targets.json"]


def test_releases_are_known_without_network_in_a_new_process_and_after_expiry(client: Client) -> None:
    other = Trust(client.folder, now=lambda: day(4000), emit=client.events.append)
    assert [ref.version for ref in other.releases()] == ["1.0"]


def test_an_update_is_seen_and_newest_releases_come_first(client: Client, publisher: Publisher) -> None:
    publisher.add_document("voice/1.1/manifest.json", b"x", {"model": "voice", "version": "1.1", "release": 2})
    publisher.add_document("ear/7/manifest.json", b"y", {"model": "ear", "version": "7", "release": 9})
    publisher.publish(step=1)
    client.trust.refresh(publisher.source)
    assert [(ref.model, ref.version) for ref in client.trust.releases()] == [
        ("ear", "7"),
        ("voice", "1.1"),
        ("voice", "1.0"),
    ]


def test_a_refresh_without_news_costs_two_requests_and_changes_only_the_clock(
    client: Client, publisher: Publisher
) -> None:
    before, requests = client.files(), publisher.source.requests
    client.now = day(1)
    client.trust.refresh(publisher.source)
    assert publisher.source.requests - requests == 2
    after = client.files()
    assert {name for name in after if after[name] != before.get(name)} == {"refresh.record"}


def test_a_store_without_root_asks_for_init(publisher: Publisher, ram: Path) -> None:
    trust = Trust(ram / "trusted", now=lambda: DAY0, emit=lambda event: None)
    assert trust.releases() == []
    with pytest.raises(ConfigError, match="no root"):
        trust.refresh(publisher.source)


def test_only_a_root_signed_by_itself_can_be_the_first(publisher: Publisher, ram: Path) -> None:
    good = publisher.source.files["metadata/1.root.json"]
    publisher.signers["root"] = [CryptoSigner.generate_ed25519()]
    for data in (
        publisher.signed(publisher.root),
        publisher.signed(publisher.targets),
        b"",
        b"[",
        good[:-9],
        b"[" * 9**6,
    ):
        with pytest.raises(TrustError):
            Trust.initialise(ram / "trusted", data)
        assert not (ram / "trusted").exists()
    assert Trust.initialise(ram / "trusted", good) == 1
    assert Trust.initialise(ram / "trusted", good) == 1


def test_a_damaged_trusted_root_says_how_to_mend_it(client: Client, publisher: Publisher) -> None:
    (client.folder / "root.json").chmod(0o600)
    (client.folder / "root.json").write_bytes(b"rot")
    with pytest.raises(TrustError, match="kensho init"):
        client.trust.refresh(publisher.source)
    assert Trust.initialise(client.folder, publisher.source.files["metadata/1.root.json"]) == 1
    client.trust.refresh(publisher.source)


# --- documents ---


def test_a_document_that_is_not_the_signed_one_is_the_sources_fault(client: Client, publisher: Publisher) -> None:
    target = "voice/1.0/manifest.json"
    path = f"targets/voice/1.0/{digest_of(DOCUMENT)}.manifest.json"
    for bad in (DOCUMENT.replace(b"1", b"2"), DOCUMENT[:-1], b""):
        publisher.source.files[path] = bad
        with pytest.raises(DigestMismatch):
            client.trust.fetch_document(publisher.source, target)
    publisher.source.files[path] = DOCUMENT + b" "
    with pytest.raises(TransportError):
        client.trust.fetch_document(publisher.source, target)
    with pytest.raises(TrustError, match="not signed"):
        client.trust.fetch_document(publisher.source, "voice/2.0/manifest.json")


# --- the folder ---


def test_a_refresh_killed_at_any_operation_goes_on_next_time(publisher: Publisher, ram: Path) -> None:
    root = publisher.source.files["metadata/1.root.json"]
    first = dict(publisher.source.files)
    publisher.replace_key("snapshot")
    publisher.publish(step=1)
    accepted = {digest_of(data) for data in (*first.values(), *publisher.source.files.values())}
    at = 0
    while True:
        at += 1
        client = Client(ram / f"client{at}", root)
        client.trust.refresh(MemorySource(first))
        disk = FaultyDisk(at=at)
        try:
            Trust(client.folder, now=lambda: day(1), emit=client.events.append, disk=disk).refresh(publisher.source)
        except Stopped:
            disk.release()
        for name, data in client.files().items():
            assert name == "refresh.record" or digest_of(data) in accepted
        client.trust.refresh(publisher.source)
        assert client.files()["targets.json"] == publisher.source.files["metadata/2.targets.json"]
        if not disk.is_reached:
            break
    assert at > 20


def test_an_older_view_does_not_overwrite_what_another_process_accepted(client: Client, publisher: Publisher) -> None:
    publisher.publish(step=1)
    older = MemorySource(publisher.source.files)
    publisher.publish(step=1)

    class Racing(MemorySource):
        def read(self, path: str, *, max_bytes: int) -> bytes:
            data = super().read(path, max_bytes=max_bytes)
            if path == "metadata/timestamp.json":  # now another process refreshes from an up-to-date source
                Trust(client.folder, now=lambda: DAY0, emit=client.events.append).refresh(publisher.source)
            return data

    with pytest.raises(StoreBusy):
        client.trust.refresh(Racing(older.files))
    assert client.files()["timestamp.json"] == publisher.source.files["metadata/timestamp.json"]


@pytest.mark.real
def test_what_an_offline_start_needs_imports_neither_tuf_nor_http_nor_cryptography() -> None:
    code = (
        "import sys\n"
        "import kensho.delivery.manifest, kensho.delivery.packs, kensho.delivery.releases, kensho.delivery.layout\n"
        "import kensho.delivery.trusted_folder, kensho.delivery.rollout\n"
        "bad = {'tuf', 'urllib3', 'securesystemslib', 'cryptography', 'msgspec', 'numpy', 'pyfastcdc', 'http.client'}\n"
        "print(sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
