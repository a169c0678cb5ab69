"""Rows of docs/adversarial.md that no other test file covers: swaps, lost locks, a million chunks, TLS, mappings."""

import errno
import json
import mmap
import os
import resource
import ssl
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import KenshoError, NotEnoughSpace, StorageError, TransportError, TrustError
from kensho.base.ids import digest_of
from kensho.delivery.checker import verify
from kensho.delivery.disk import RealDisk
from kensho.delivery.folder_source import FolderSource
from kensho.delivery.http_source import HttpSource
from kensho.delivery.manifest import FileEntry, Manifest, dump_manifest, parse_manifest
from kensho.delivery.repair import Repairer
from kensho.delivery.retention import gc
from kensho.testing.client import FIRST, SECOND, Client, model_files, weights
from kensho.testing.clock import VirtualClock
from kensho.testing.disk import FaultyDisk
from kensho.testing.hostile import hostile_server, reply
from kensho.testing.memory_source import read_folder
from kensho.testing.repository import SimulatedRepository

pytestmark = pytest.mark.store

# --- 15: swapped between the look and the opening ---


class SwappingDisk(RealDisk):
    """Each time that a file is looked at, it is a link to somebody else's file before it is opened."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def lstat(self, path: Path) -> os.stat_result | None:
        found = super().lstat(path)
        if found and path.name == "model.safetensors":
            path.unlink()
            path.symlink_to(self._target)
        return found


def test_a_file_swapped_for_a_link_before_it_is_opened_is_never_read(ram: Path, world: SimulatedRepository) -> None:
    client = Client(ram / "store", world)
    client.pull(world.source())
    outside = ram / "outside"
    outside.write_bytes(model_files(FIRST)["model.safetensors"])  # even the right bytes: they are not ours
    client.store.close()
    swapped = Client(ram / "store", world, disk=SwappingDisk(outside))
    with pytest.raises(StorageError, match="symbolic link"):
        verify(swapped.store, is_full=True, clock=swapped.clock, emit=swapped.events.append)
    swapped.store.close()


# --- 18: a quota is a full disk ---


def test_a_quota_that_is_used_up_is_not_enough_space_and_what_was_fetched_is_kept(
    ram: Path, world: SimulatedRepository
) -> None:
    Client(ram / "store", world).store.close()
    writes = FaultyDisk()
    Client(ram / "count", world, disk=writes).pull(world.source())
    at = max(number for number, name in enumerate(writes.operations, 1) if name == "write") // 2
    client = Client(ram / "store", world, disk=FaultyDisk(at=at, fault=errno.EDQUOT, is_lasting=True))
    with suppress(NotEnoughSpace):
        assert isinstance(client.pull(world.source()).first_error, NotEnoughSpace)
    client.store.close()
    after = Client(ram / "store", world)
    assert after.pull(world.source()).models[0].state == "updated"
    assert after.content() == model_files(FIRST)


# --- 21: locks that hold nobody ---


class LocklessDisk(RealDisk):
    """NFS without a lock daemon, or Lustre without flock: everybody gets the lock."""

    def lock(self, path: Path) -> int:
        return self.open_write(path)


@pytest.mark.real
def test_where_locks_hold_nobody_two_pulls_may_fail_or_miss_files_but_never_mix(
    ram: Path, world: SimulatedRepository, grown: SimulatedRepository
) -> None:
    for round_ in range(12):
        root = ram / f"store{round_}"
        Client(root, world).store.close()
        errors: list[BaseException] = []

        def pull(source: SimulatedRepository, root: Path = root, errors: list[BaseException] = errors) -> None:
            client = Client(root, world, disk=LocklessDisk())
            try:
                client.pull(source.source(), connections=2)
            except KenshoError:
                pass  # somebody else was quicker: allowed
            except BaseException as error:
                errors.append(error)
            finally:
                client.store.close()

        threads = [threading.Thread(target=pull, args=(grown if one else world,)) for one in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        after = Client(root, world)
        for release in after.store.state.releases():
            right = model_files({"1.0": FIRST, "2.0": SECOND}[release.version])
            found = read_folder(after.store.versions.path("voice", release.version))
            assert found.items() <= right.items(), "a file of another version, or in between"
            # One process's gc can take what another is about to commit. Then it is missed, and mended, by every check.
            damaged = verify(after.store, is_full=False, clock=after.clock, emit=after.events.append).damaged
            assert {path for path in right if path not in found} <= {damage.path for damage in damaged}
        assert after.pull(grown.source()).models[0].version == "2.0"
        assert after.content() == model_files(SECOND)
        after.store.close()


# --- 22 and 26: a file that somebody has mapped ---


def test_a_mapped_file_keeps_its_bytes_through_update_repair_and_gc(
    ram: Path, world: SimulatedRepository, grown: SimulatedRepository
) -> None:
    third = grown.copy(ram / "third")
    third.publish("voice", "3.0", model_files(weights(9)))
    client = Client(ram / "store", world)
    client.pull(world.source())
    path = client.store.model("voice").folder / "model.safetensors"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        before = path.read_bytes()
        path.chmod(0o644)
        with path.open("r+b") as spoiled:
            spoiled.seek(1000)
            spoiled.write(b"\0")
        damaged = verify(client.store, is_full=True, clock=client.clock, emit=client.events.append).damaged
        Repairer(client.store, [world.source()], emit=client.events.append, clock=client.clock, rng=lambda: 0.5).repair(
            damaged
        )
        seen = bytes(mapped)
        assert (seen[:1000], seen[1001:]) == (before[:1000], before[1001:])
        for source in (grown, third):
            client.pull(source.source())
        gc(client.store, clock=client.clock)
        assert not path.exists()
        assert bytes(mapped) == seen
    client.store.close()


# --- 25: a million chunks ---

MILLION = """
import resource, struct, sys
from kensho.base.ids import digest_of
from kensho.delivery.chunk_list import MAX_CHUNKS, parse_chunk_records
from kensho.delivery.plan import Have, WantedFile, make_plan
n, per_pack = MAX_CHUNKS, 1000
packs = b"".join(bytes.fromhex(digest_of(b"pack %d" % i)) for i in range(n // per_pack))
record = struct.Struct("<32sIIIIB")
body = b"".join(
    record.pack(i.to_bytes(32, "big"), 1000, i // per_pack, 1000 * (i % per_pack), 1000, 0) for i in range(n)
)
data = struct.pack("<16sII", b"kensho-chunks-1\\n", n // per_pack, n) + packs + body
chunks = parse_chunk_records(data, 1000 * n).chunks
few = chunks[:50_000]
plan = make_plan("m", "1", [WantedFile(digest_of(b"f"), 1000 * len(few), few)], Have(), free_bytes=1 << 50)
print(len(chunks), plan.bytes_fetch, plan.requests)
"""


@pytest.mark.real
def test_a_million_chunks_are_read_in_bounded_memory_and_planning_grows_with_their_number() -> None:
    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))

    done = subprocess.run(
        [sys.executable, "-c", MILLION], capture_output=True, text=True, check=False, timeout=120, preexec_fn=bound
    )
    assert done.stdout.split() == ["1000000", str(50_000_000), "50"], done.stderr[-500:]


# --- 7: any JSON in place of any part of a manifest ---

JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
GOOD = dump_manifest(
    Manifest(
        model="voice",
        version="1.0",
        release=3,
        min_client_version="0.1.0",
        timestamp="2027-01-15T08:00:00Z",
        changelog="",
        is_required=True,
        fallback_model=None,
        files=(
            FileEntry("a.json", 2, digest_of(b"a"), "1.0", True, "b.json", digest_of(b"la")),
            FileEntry("b.json", 2, digest_of(b"b"), "1.0", False, None, digest_of(b"lb")),
        ),
    )
)


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_any_json_in_any_place_of_a_manifest_is_accepted_as_it_is_or_refused(data: st.DataObject) -> None:
    whole = json.loads(GOOD)
    at = whole
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[key], dict | list) or not at[key] or data.draw(st.booleans()):
            break
        at = at[key]
    if data.draw(st.booleans()):
        at[key] = data.draw(JUNK)
    elif isinstance(at, dict):
        at[data.draw(st.text(max_size=8))] = data.draw(JUNK)
    else:
        at.append(data.draw(JUNK))
    document = json.dumps(whole).encode()
    try:
        found = parse_manifest(document)
    except TrustError:
        return
    assert json.loads(dump_manifest(found)) == whole, "nothing was read that is not there, nothing was ignored"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 3))
def test_any_bytes_as_a_chunk_list_are_refused_or_mean_what_they_say(body: bytes, packs: int, chunks: int) -> None:
    from kensho.delivery.chunk_list import dump_chunk_list, parse_chunk_records

    document = struct.pack("<16sII", b"kensho-chunks-1\n", packs, chunks) + body
    with suppress(TrustError):
        for size in (0, 1, len(body)):
            assert dump_chunk_list(parse_chunk_records(document, size)) == document


# --- 23: somebody between us and the server ---


def _self_signed(folder: Path) -> Path:
    key, name = generate_private_key(SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "proxy")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    )
    return path


@pytest.mark.real
def test_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_said(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_self_signed(tmp_path))
    heads: list[bytes] = []

    def answer(head: bytes, connection: object) -> None:
        heads.append(head)

    with hostile_server(answer, tls=context) as url:
        source = HttpSource(url, clock=VirtualClock(), stall_s=2.0)
        with pytest.raises(TransportError, match="certificate") as caught:
            source.read("metadata/timestamp.json", max_bytes=100)
    assert caught.value.advice
    assert not heads


@pytest.mark.real
def test_a_name_that_nobody_knows_is_one_sentence() -> None:
    with pytest.raises(TransportError, match=r"models\.invalid") as caught:
        HttpSource("http://models.invalid/app", clock=VirtualClock(), stall_s=2.0).read("x", max_bytes=10)
    assert caught.value.advice


@pytest.mark.real
def test_a_proxy_that_wants_a_password_is_one_sentence() -> None:
    with hostile_server(reply("407 Proxy Authentication Required", Proxy_Authenticate="Basic")) as url:
        source = HttpSource("http://models.invalid/app", clock=VirtualClock(), proxy=url)
        with pytest.raises(TransportError, match="407"):
            source.read("x", max_bytes=10)


# --- 27: a machine that was off, and has no network ---


def test_a_stick_brings_a_machine_that_was_off_for_years_up_to_date(ram: Path, world: SimulatedRepository) -> None:
    """The chain of roots is on the stick, too: `init` need not be done again."""
    from kensho.delivery.repository import resign

    client = Client(ram / "store", world)
    client.pull(world.source())
    stick = world.copy(ram / "stick")
    now = datetime.fromtimestamp(client.clock.wall_s(), UTC)
    for year in (1, 2, 3):
        resign(stick.folder, ram / "stick" / "keys", now=now + timedelta(days=364 * year))
    client.clock.sleep(3 * 364 * 86400.0 + 3600)
    assert client.pull(FolderSource(stick.folder)).models[0].state == "current"
    assert client.content() == model_files(FIRST)
