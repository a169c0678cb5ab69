"""kensho.delivery.publisher and packing: a release is whole or absent, and only new chunks are packed."""

import errno
import json
import random
import shutil
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest

from kensho.base.errors import ConfigError, KenshoError, ModelError, NotEnoughSpace, StorageError, TrustError
from kensho.base.events import Event, ReleasePublished
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.delivery import packing
from kensho.delivery.disk import Disk, RealDisk
from kensho.delivery.keys import keygen
from kensho.delivery.layout import chunk_list_target, pack_path
from kensho.delivery.manifest import Manifest, parse_chunk_list, parse_manifest
from kensho.delivery.packs import decode_chunk
from kensho.delivery.published_file import read_published
from kensho.delivery.publisher import PublishReport, publish
from kensho.delivery.repository import Repository
from kensho.testing.disk import FaultyDisk, Stopped

pytestmark = pytest.mark.store

NOW = datetime(2026, 11, 20, 9, 14, tzinfo=UTC)
EVERY = pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.real)])
"""Each seventh operation in the fast tests, each one in the real ones."""


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("publisher") / "keys"
    keygen(folder)
    return folder


def write_model(folder: Path, *, tensors: int = 6, changed: int | None = None) -> Path:
    """A folder with one safetensors file; tensor number `changed` has other bytes."""
    folder.mkdir(exist_ok=True)
    table, data = {}, b""
    for number in range(tensors):
        piece = random.Random(100 + number if number == changed else number).randbytes(20_000)
        table[f"t{number}"] = {"dtype": "U8", "shape": [20_000], "data_offsets": [len(data), len(data) + 20_000]}
        data += piece
    header = json.dumps(table).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    (folder / "config.json").write_text('{"model_type": "gemma3_text"}')
    (folder / "empty.txt").write_bytes(b"")
    return folder


def put(
    source: Path,
    repo: Path,
    keys: Path,
    version: str = "1.0",
    *,
    model: str = "voice",
    disk: Disk | None = None,
    **terms: object,
) -> PublishReport:
    def emit(event: Event) -> None:
        assert isinstance(event, ReleasePublished)

    return publish(source, repo, keys, model=model, version=version, now=NOW, emit=emit, disk=disk, **terms)  # type: ignore[arg-type]


def manifest_of(repo: Path, keys: Path, version: str, model: str = "voice") -> Manifest:
    repository = Repository.open(repo, keys, RealDisk())
    return parse_manifest(repository.read_target(f"{model}/{version}/manifest.json"))


def content_of(repo: Path, keys: Path, version: str, model: str = "voice") -> dict[str, bytes]:
    """The files of a release, read from the repository as a client would."""
    repository = Repository.open(repo, keys, RealDisk())
    files = {}
    for file in manifest_of(repo, keys, version, model).files:
        chunks = parse_chunk_list(repository.read_target(chunk_list_target(model, file.chunk_list)), file)
        data = b""
        for chunk in chunks.chunks:
            pack = (repo / pack_path(chunk.pack)).read_bytes()
            data += decode_chunk(pack[chunk.pack_offset : chunk.pack_offset + chunk.encoded_bytes], chunk)
        assert digest_of(data) == file.digest
        files[file.path] = data
    return files


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_published_model_comes_back_bit_by_bit(keys: Path, ram: Path) -> None:
    source = write_model(ram / "m")
    events: list[Event] = []
    steps: list[tuple[int, int]] = []
    report = publish(
        source,
        ram / "repo",
        keys,
        model="voice",
        version="1.0",
        is_required=False,
        fallback_model="small",
        changelog="first",
        min_client="0.1",
        now=NOW,
        emit=events.append,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert content_of(ram / "repo", keys, "1.0") == bytes_in(source)
    manifest = manifest_of(ram / "repo", keys, "1.0")
    assert (manifest.is_required, manifest.fallback_model, manifest.changelog) == (False, "small", "first")
    assert (manifest.release, manifest.timestamp) == (1, "2026-11-20T09:14:00Z")
    total = sum(len(data) for data in bytes_in(source).values())
    assert (report.files, report.chunks, report.bytes_source) == (3, 8, total)
    assert report.bytes_packed == sum(path.stat().st_size for path in (ram / "repo" / "packs").iterdir())
    assert report.root == ram / "repo" / "metadata" / "1.root.json"
    assert [event.name for event in events] == ["delivery.release.published"]
    assert steps[-1] == (total, total)
    assert steps == sorted(steps)


def test_only_new_chunks_are_packed_and_unchanged_files_keep_their_version(keys: Path, ram: Path) -> None:
    source, repo = write_model(ram / "m"), ram / "repo"
    put(source, repo, keys, "1.0")
    before = manifest_of(repo, keys, "1.0")
    report = put(write_model(source, changed=3), repo, keys, "1.1")
    assert 20_000 <= report.bytes_packed < 20_100
    after = manifest_of(repo, keys, "1.1")
    assert {file.path: file.version for file in after.files} == {
        "config.json": "1.0",
        "empty.txt": "1.0",
        "model.safetensors": "1.1",
    }
    assert [file for file in after.files if file.version == "1.0"] == [
        file for file in before.files if file.path != "model.safetensors"
    ]
    assert after.release == 2
    assert content_of(repo, keys, "1.1") == bytes_in(source)
    write_model(source)
    assert put(source, repo, keys, "1.2").bytes_packed == 0
    assert {file.version for file in manifest_of(repo, keys, "1.2").files} == {"1.0", "1.2"}
    assert put(source, repo, keys, "1.0", model="other").bytes_packed == 0
    assert content_of(repo, keys, "1.0", "other") == content_of(repo, keys, "1.0")


def test_chunks_whose_pack_is_gone_are_packed_again(keys: Path, ram: Path) -> None:
    source, repo = write_model(ram / "m"), ram / "repo"
    put(source, repo, keys, "1.0")
    shutil.rmtree(repo / "packs")
    put(source, repo, keys, "1.1")
    assert content_of(repo, keys, "1.1") == bytes_in(source)


def test_the_same_version_is_never_published_twice(keys: Path, ram: Path) -> None:
    source, repo = write_model(ram / "m"), ram / "repo"
    put(source, repo, keys)
    before = bytes_in(repo)
    with pytest.raises(ConfigError, match="already published, with other files"):
        put(write_model(source, changed=1), repo, keys)
    with pytest.raises(ConfigError, match="already published, with other files"):
        put(write_model(source, changed=1), repo, keys, rollout_percent=10)
    with pytest.raises(ConfigError, match="already published"):
        put(write_model(source), repo, keys)
    (source / "empty.txt").unlink()
    with pytest.raises(ConfigError, match="already published, with other files"):
        put(source, repo, keys, rollout_percent=10)
    assert bytes_in(repo) == before


def test_a_release_is_rolled_out_further_with_the_same_files_in_the_same_line(keys: Path, ram: Path) -> None:
    source, repo = write_model(ram / "m"), ram / "repo"
    put(source, repo, keys, rollout_percent=10, changelog="first")
    before = manifest_of(repo, keys, "1.0")
    for percent in (50, 0, 100):
        report = put(source, repo, keys, rollout_percent=percent)
        assert manifest_of(repo, keys, "1.0") == replace(before, rollout_percent=percent)
        assert (report.files, report.chunks, report.bytes_packed) == (3, 8, 0)
    assert content_of(repo, keys, "1.0") == bytes_in(source)


def test_a_staged_roll_out_is_signed_with_a_line_of_its_own_for_each_release(keys: Path, ram: Path) -> None:
    source, repo = write_model(ram / "m"), ram / "repo"
    put(source, repo, keys, "1.0")
    put(source, repo, keys, "1.1", rollout_percent=10)
    found = [manifest_of(repo, keys, version) for version in ("1.0", "1.1")]
    assert [(m.rollout_percent, m.rollout_salt) for m in found] == [(100, "voice/1.0"), (10, "voice/1.1")]
    for odd in (-1, 101):
        with pytest.raises(ConfigError, match="percent"):
            put(source, repo, keys, "1.2", rollout_percent=odd)


def test_a_truncated_file_is_refused_before_anything_is_written(keys: Path, ram: Path) -> None:
    source = write_model(ram / "m")
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="truncated"):
        put(source, ram / "repo", keys)
    (ram / "empty").mkdir()
    with pytest.raises(ModelError, match="not a model"):
        put(ram / "empty", ram / "repo", keys)
    assert not (ram / "repo").exists()


@pytest.mark.parametrize(
    "terms",
    [
        {"model": "../voice"},
        {"version": "1/0"},
        {"fallback_model": "voice"},
        {"fallback_model": ".x"},
        {"changelog": "x" * 20_000},
        {"min_client": "newest"},
        {"expires_days": 0},
    ],
)
def test_terms_that_make_no_sense_are_refused_before_anything_is_written(
    terms: dict[str, object], keys: Path, ram: Path
) -> None:
    with pytest.raises(ConfigError):
        put(write_model(ram / "m"), ram / "repo", keys, **terms)  # type: ignore[arg-type]
    assert not (ram / "repo").exists()


def test_missing_keys_are_noticed_before_anything_is_packed(keys: Path, ram: Path) -> None:
    partly = ram / "keys"
    shutil.copytree(keys, partly)
    (partly / "timestamp.pem").unlink()
    with pytest.raises(ConfigError, match="timestamp"):
        put(write_model(ram / "m"), ram / "repo", partly)
    assert not (ram / "repo" / "packs").exists()


def test_a_planted_chunk_list_is_not_built_upon(keys: Path, ram: Path) -> None:
    source, repo = write_model(ram / "m"), ram / "repo"
    put(source, repo, keys)
    (path, *_) = sorted((repo / "targets" / "voice" / "chunks").iterdir(), key=lambda found: -found.stat().st_size)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"\0", b"\1", 1))
    before = bytes_in(repo)
    with pytest.raises(TrustError):
        put(source, repo, keys, "1.1")
    assert bytes_in(repo) == before


def test_a_file_that_changes_meanwhile_is_not_published(keys: Path, ram: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_model(ram / "m")
    encode = packing.encode_chunk
    path = source / "model.safetensors"

    for change in (path.read_bytes()[:50_000], path.read_bytes() + b"x"):

        def encode_and_change(data: bytes, change: bytes = change) -> tuple[object, bytes]:
            path.write_bytes(change)
            return encode(data)

        write_model(source)
        monkeypatch.setattr(packing, "encode_chunk", encode_and_change)
        with pytest.raises(ConfigError, match="changed while"):
            put(source, ram / "repo", keys)
        assert not (ram / "repo" / "metadata").exists()
        assert not list((ram / "repo" / "packs").iterdir())


@EVERY
def test_a_publisher_killed_at_any_operation_leaves_the_old_release_and_can_be_run_again(
    step: int, keys: Path, ram: Path
) -> None:
    source, start = write_model(ram / "m"), ram / "start"
    put(source, start, keys, "1.0")
    old = content_of(start, keys, "1.0")
    write_model(source, changed=2)
    seen = set()
    at = 0
    while True:
        at += step
        repo = ram / f"repo{at}"
        shutil.copytree(start, repo)
        disk = FaultyDisk(at=at)
        try:
            put(source, repo, keys, "1.1", disk=disk)
        except Stopped:
            disk.release()
        if not disk.is_reached:
            break
        versions = {ref.version for ref in Repository.open(repo, keys, RealDisk()).releases()}
        seen.add(frozenset(versions))
        assert content_of(repo, keys, "1.0") == old
        if "1.1" not in versions:
            put(source, repo, keys, "1.1")
        assert content_of(repo, keys, "1.1") == bytes_in(source)
        shutil.rmtree(repo)
    assert at > 40
    assert frozenset({"1.0"}) in seen
    assert step > 1 or seen == {frozenset({"1.0"}), frozenset({"1.0", "1.1"})}


@EVERY
def test_a_first_publisher_killed_at_any_operation_can_be_run_again(step: int, keys: Path, ram: Path) -> None:
    source = write_model(ram / "m")
    at = 0
    while True:
        at += step
        repo = ram / f"repo{at}"
        disk = FaultyDisk(at=at)
        try:
            put(source, repo, keys, disk=disk)
        except Stopped:
            disk.release()
        if not disk.is_reached:
            break
        if not (repo / "metadata" / "timestamp.json").exists():
            put(source, repo, keys)
        assert content_of(repo, keys, "1.0") == bytes_in(source)
    assert at > 40


@EVERY
@pytest.mark.parametrize(("fault", "family"), [(errno.ENOSPC, NotEnoughSpace), (errno.EIO, StorageError)])
def test_a_disk_that_fails_anywhere_is_one_sentence_and_the_old_release_stays(
    step: int, fault: int, family: type[KenshoError], keys: Path, ram: Path
) -> None:
    source, repo = write_model(ram / "m"), ram / "repo"
    put(source, repo, keys, "1.0")
    old = content_of(repo, keys, "1.0")
    write_model(source, changed=2)
    at, failed = 0, 0
    while True:
        at += step
        disk = FaultyDisk(at=at, fault=fault, is_lasting=True)
        try:
            put(source, repo, keys, f"2.{at}", disk=disk)
        except StorageError as error:
            failed += 1
            assert isinstance(error, family)
            assert "serves what it served" in error.advice
        assert content_of(repo, keys, "1.0") == old
        if not disk.is_reached:
            break
    assert failed > 30 // step


def test_a_made_file_is_published_in_place_of_the_sources_own(keys: Path, ram: Path) -> None:
    source, repo, made = write_model(ram / "m"), ram / "repo", ram / "made"
    (source / "tokenizer.tables").write_bytes(b"old")
    made.write_bytes(b"new tables")
    put(source, repo, keys, made={"tokenizer.tables": made})
    assert content_of(repo, keys, "1.0")["tokenizer.tables"] == b"new tables"


def test_a_wider_roll_out_keeps_the_made_files_that_the_release_has(keys: Path, ram: Path) -> None:
    source, repo, made = write_model(ram / "m"), ram / "repo", ram / "made"
    made.write_bytes(b"tables of an older program")
    put(source, repo, keys, rollout_percent=10, made={"tokenizer.tables": made})
    put(source, repo, keys, rollout_percent=50, made={"tokenizer.tables": None})
    assert content_of(repo, keys, "1.0")["tokenizer.tables"] == b"tables of an older program"
    assert manifest_of(repo, keys, "1.0").rollout_percent == 50


def test_a_file_of_the_newest_release_is_read_back_whole_or_not_at_all(keys: Path, ram: Path) -> None:
    source, repo = write_model(ram / "m"), ram / "repo"
    put(source, repo, keys, "1.0")
    put(write_model(ram / "m", changed=1), repo, keys, "1.1")
    expected = (source / "model.safetensors").read_bytes()
    assert read_published(repo, "voice", "model.safetensors", max_bytes=1 << 20) == expected
    for model, path, limit in (("other", "config.json", 99), ("voice", "none", 99), ("voice", "config.json", 2)):
        assert read_published(repo, model, path, max_bytes=limit) is None
    assert read_published(ram / "nowhere", "voice", "config.json", max_bytes=99) is None
    for pack in (repo / "packs").rglob("*.pack"):
        pack.write_bytes(bytes(pack.stat().st_size))
    assert read_published(repo, "voice", "model.safetensors", max_bytes=1 << 20) is None
