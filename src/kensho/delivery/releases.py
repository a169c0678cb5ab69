"""What the signed targets metadata says about releases: the `custom` part of each manifest's target. Pure.

    "voice/2.0/manifest.json": {"length": ..., "hashes": {"sha256": ...},
                                "custom": {"model": "voice", "version": "2.0", "release": 7}}

It is just enough to see which releases there are without fetching each manifest.
"""

from kensho.base.errors import ConfigError, TrustError
from kensho.base.ids import Digest, check_name, parse_digest
from kensho.base.structs import Struct
from kensho.delivery.layout import manifest_target
from kensho.delivery.manifest import MAX_MANIFEST_BYTES, MAX_RELEASE
from kensho.delivery.strict_json import Fields, refuse


class ReleaseRef(Struct):
    """A release as the targets metadata names it: signed, its manifest not yet read."""

    model: str
    version: str
    release: int
    """Rises by one with every publish of the model."""
    target: str
    """TUF target path of the manifest."""
    digest: Digest
    """Of the manifest's bytes."""
    size_bytes: int


def describe_release(model: str, version: str, release: int) -> dict[str, object]:
    """The `custom` part of a manifest's target."""
    return {"model": model, "version": version, "release": release}


def read_release(target: str, length: object, sha256: object, custom: object) -> ReleaseRef | None:
    """The release that a target stands for; None if it is not a manifest. TrustError if it is odd."""
    if not target.endswith("/manifest.json"):
        return None
    fields = Fields(custom, f"target {target[:200]!r}", _KEYS)
    try:
        model = check_name(fields.text("model", max_bytes=64), "model")
        version = check_name(fields.text("version", max_bytes=64), "version")
    except ConfigError as error:
        raise TrustError(f"target {target[:200]!r}: {error.message}", advice="tell its publisher") from error
    if target != manifest_target(model, version):
        refuse(f"target {target[:200]!r} says that it is {model} {version}")
    if type(length) is not int or not 0 < length <= MAX_MANIFEST_BYTES:
        refuse(f"target {target[:200]!r} has a manifest of {str(length)[:20]} bytes")
    release = fields.integer("release", low=1, high=MAX_RELEASE)
    return ReleaseRef(model, version, release, target, parse_digest(sha256), length)


_KEYS = {"model", "version", "release"}
