"""kensho.delivery.manifest: what a release may say, and that no bytes do anything but parse or be refused."""

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import ClientTooOld, TrustError
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import replace
from kensho.delivery.manifest import (
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    Manifest,
    check_client_version,
    dump_manifest,
    parse_manifest,
)

D1, D2 = digest_of(b"1"), digest_of(b"2")


def entry(path: str = "model.safetensors", *, fallback: str | None = None) -> FileEntry:
    return FileEntry(path, 5, D1, "1.0", True, fallback, D2)


MANIFEST = Manifest(
    model="voice",
    version="1.0",
    release=7,
    min_client_version="0.1.0",
    timestamp="2026-11-20T09:14:00Z",
    changelog="Première version\n",
    is_required=True,
    fallback_model=None,
    files=(entry(), entry("config.json", fallback="model.safetensors")),
    rollout_percent=10,
    rollout_salt="voice/1.0",
)


def edited(change: Callable[[dict], object]) -> bytes:  # type: ignore[type-arg]
    value = json.loads(dump_manifest(MANIFEST))
    change(value)
    return json.dumps(value).encode()


def test_a_dumped_manifest_comes_back() -> None:
    assert parse_manifest(dump_manifest(MANIFEST)) == MANIFEST
    assert MANIFEST.size_bytes == 10


def test_the_json_has_the_prototypes_names() -> None:
    value = json.loads(dump_manifest(MANIFEST))
    assert {"version", "minClientVersion", "timestamp", "files", "changelog"} <= value.keys()
    assert {"path", "sha256", "size", "version", "required", "fallback"} <= value["files"][0].keys()
    assert value["format"] == 1
    assert value["rollout"] == {"percent": 10, "salt": "voice/1.0"}


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(extra=1),
        lambda m: m.pop("changelog"),
        lambda m: m.update(format=0),
        lambda m: m.update(format=True),
        lambda m: m.update(format="1"),
        lambda m: m.pop("format"),
        lambda m: m.update(release=0),
        lambda m: m.update(release=True),
        lambda m: m.update(release=2**40),
        lambda m: m.update(model="../x"),
        lambda m: m.update(model="con"),
        lambda m: m.update(version=""),
        lambda m: m.update(minClientVersion="1.x"),
        lambda m: m.update(minClientVersion="1.2.3.4.5"),
        lambda m: m.update(timestamp="2026-13-01T00:00:00Z"),
        lambda m: m.update(timestamp="2026-11-20T09:14:00"),
        lambda m: m.update(timestamp="yesterday"),
        lambda m: m.update(changelog="x" * 20_000),
        lambda m: m.update(changelog=None),
        lambda m: m.update(required=1),
        lambda m: m.update(fallbackModel="a/b"),
        lambda m: m.update(rollout=100),
        lambda m: m.pop("rollout"),
        lambda m: m["rollout"].update(percent=101),
        lambda m: m["rollout"].update(percent=-1),
        lambda m: m["rollout"].update(percent=True),
        lambda m: m["rollout"].update(salt=None),
        lambda m: m["rollout"].update(salt="x" * 257),
        lambda m: m["rollout"].update(more=1),
        lambda m: m.update(files=[]),
        lambda m: m.update(files={}),
        lambda m: m.update(files=[1]),
        lambda m: m["files"][0].update(size=-1),
        lambda m: m["files"][0].update(size=2**60),
        lambda m: m["files"][0].update(sha256="A" * 64),
        lambda m: m["files"][0].update(sha256="../" + "a" * 61),
        lambda m: m["files"][0].update(chunks=None),
        lambda m: m["files"][0].update(path="../model.safetensors"),
        lambda m: m["files"][0].update(path="/etc/passwd"),
        lambda m: m["files"][0].update(path="CONFIG.json"),
        lambda m: m["files"][0].update(path="config.json/x"),
        lambda m: m["files"][0].update(fallback="absent"),
        lambda m: m["files"][0].update(fallback="model.safetensors"),
        lambda m: m["files"][0].update(fallback="config.json"),
    ],
)
def test_an_odd_manifest_is_refused(change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    with pytest.raises(TrustError):
        parse_manifest(edited(change))


def test_a_manifest_of_a_later_format_asks_for_a_newer_client_whatever_its_keys() -> None:
    with pytest.raises(ClientTooOld) as caught:
        parse_manifest(b'{"format":2,"novel":[]}')
    assert "update" in caught.value.advice


def test_too_many_files_are_refused() -> None:
    files = tuple(entry(f"{number}.bin") for number in range(MAX_FILES + 1))
    with pytest.raises(TrustError):
        parse_manifest(dump_manifest(replace(MANIFEST, files=files)))


def test_the_largest_manifest_fits_its_limit_and_a_larger_one_is_refused() -> None:
    longest = tuple(
        FileEntry("é" * 120 + f"{number:05}.bin", 2**40, D1, "v" * 64, True, "é" * 120 + f"{number + 1:05}.bin", D2)
        for number in range(MAX_FILES)
    )
    files = (*longest[:-1], replace(longest[-1], fallback=None))
    data = dump_manifest(replace(MANIFEST, files=files))
    assert len(data) < MAX_MANIFEST_BYTES
    assert parse_manifest(data).files == files
    with pytest.raises(TrustError):
        parse_manifest(data + b" " * MAX_MANIFEST_BYTES)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.binary(min_size=1, max_size=4), st.integers(0, 4))
def test_a_damaged_manifest_gives_a_manifest_or_a_trust_error(at: int, junk: bytes, cut: int) -> None:
    data = dump_manifest(MANIFEST)
    at %= len(data)
    with contextlib.suppress(TrustError):
        parse_manifest(data[:at] + junk + data[at + cut :])


@pytest.mark.parametrize(
    ("needed", "client", "is_enough"),
    [
        ("0.1.0", "0.1.0", True),
        ("0.1", "0.1.0", True),
        ("0.1.0", "0.1", True),
        ("0.2.0", "0.1.9", False),
        ("0.10.0", "0.9.0", False),
        ("0.9.0", "0.10.0", True),
        ("1.0.0", "1.0.0.dev3", True),
        ("0.0.1", "unknown", False),
    ],
)
def test_a_manifest_that_needs_a_newer_client_is_refused_with_advice(needed: str, client: str, is_enough: bool) -> None:
    manifest = replace(MANIFEST, min_client_version=needed)
    if is_enough:
        check_client_version(manifest, client)
    else:
        with pytest.raises(ClientTooOld) as caught:
            check_client_version(manifest, client)
        assert needed in caught.value.message
        assert caught.value.advice


def test_digests_are_checked_before_they_can_be_paths() -> None:
    manifest = replace(MANIFEST, files=(replace(entry(), chunk_list=Digest("../../" + "a" * 58)),))
    with pytest.raises(TrustError):
        parse_manifest(dump_manifest(manifest))
