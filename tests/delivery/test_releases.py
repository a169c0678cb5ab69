"""kensho.delivery.releases and layout: what the signed targets say about releases."""

import pytest

from kensho.base.errors import TrustError
from kensho.base.ids import digest_of
from kensho.delivery.layout import chunk_list_target, manifest_target, metadata_path, pack_path, target_path
from kensho.delivery.manifest import MAX_MANIFEST_BYTES
from kensho.delivery.releases import ReleaseRef, describe_release, read_release

D = digest_of(b"x")


def test_a_described_release_is_read_back() -> None:
    target = manifest_target("voice", "2.0")
    assert read_release(target, 9, D, describe_release("voice", "2.0", 7)) == ReleaseRef(
        "voice", "2.0", 7, target, D, 9
    )


def test_a_chunk_list_is_no_release() -> None:
    assert read_release(chunk_list_target("voice", D), 9, D, None) is None


@pytest.mark.parametrize(
    ("length", "digest", "custom"),
    [
        (0, D, describe_release("voice", "2.0", 7)),
        (MAX_MANIFEST_BYTES + 1, D, describe_release("voice", "2.0", 7)),
        (True, D, describe_release("voice", "2.0", 7)),
        (9, "../" + "a" * 61, describe_release("voice", "2.0", 7)),
        (9, None, describe_release("voice", "2.0", 7)),
        (9, D, describe_release("voice", "2.1", 7)),
        (9, D, describe_release("con", "2.0", 7)),
        (9, D, describe_release("voice", "2.0", -1)),
        (9, D, {**describe_release("voice", "2.0", 7), "more": 1}),
        (9, D, []),
        (9, D, None),
    ],
)
def test_an_odd_release_is_refused(length: object, digest: object, custom: object) -> None:
    with pytest.raises(TrustError):
        read_release("voice/2.0/manifest.json", length, digest, custom)


def test_files_lie_where_clients_of_consistent_snapshots_look() -> None:
    assert target_path("voice/2.0/manifest.json", D) == f"targets/voice/2.0/{D}.manifest.json"
    assert pack_path(D) == f"packs/{D}.pack"
    assert metadata_path("root", 1) == "metadata/1.root.json"
