"""The manifest of one release of a model (prototype: `manifest.json`), and its link to the chunk lists. Pure.

A manifest is small whatever the size of the model: it names files; each file names its chunk list, a separate
content-addressed document. Both are TUF targets, so their bytes are signed; parsing is strict all the same, because a
publisher's mistake must not become a client's crash. Every odd document is a TrustError, one that a later Kensho
wrote is a ClientTooOld, and what is installed keeps working.
"""

import re
from datetime import datetime

from kensho.base.errors import ClientTooOld, ConfigError, TrustError
from kensho.base.ids import MAX_PATH_BYTES, Digest, check_file_paths, check_name, digest_of, parse_digest
from kensho.base.structs import Struct
from kensho.delivery.chunk_list import (
    MAX_CHUNK_BYTES,
    MAX_CHUNKS,
    Chunk,
    ChunkList,
    Encoding,
    dump_chunk_list,
    parse_chunk_records,
)
from kensho.delivery.strict_json import Fields, dump, parse, refuse

__all__ = [
    "Chunk",
    "ChunkList",
    "Encoding",
    "FileEntry",
    "Manifest",
    "check_client_version",
    "dump_chunk_list",
    "dump_manifest",
    "is_client_version",
    "parse_chunk_list",
    "parse_manifest",
]

FORMAT = 1
MAX_FILES = 4096
"""Guess: ten times the largest sharded model seen."""
MAX_MANIFEST_BYTES = 4 << 20
"""What MAX_FILES entries with the longest names need (under 1 kB each)."""
MAX_CHANGELOG_BYTES = 16 << 10
MAX_FILE_BYTES = MAX_CHUNKS * MAX_CHUNK_BYTES
MAX_RELEASE = 2**31 - 1
MAX_SALT_BYTES = 256
"""Two names and what joins them, twice over."""


class FileEntry(Struct):
    """One file of the model (row D1: path, SHA-256, size, own version, required or optional, fallback)."""

    path: str
    """Relative, safe on every system (`base.ids.check_file_path`)."""
    size_bytes: int
    digest: Digest
    version: str
    """The release in which these bytes first appeared."""
    is_required: bool
    fallback: str | None
    """Path of another file of the same manifest that is used when this one cannot be had."""
    chunk_list: Digest
    """SHA-256 of the chunk list document."""


class Manifest(Struct):
    """One release of one model (row D1). The JSON names are the prototype's: `minClientVersion`, `files` ..."""

    model: str
    version: str
    release: int
    """Rises by one with every publish of the model; the newest release has the highest."""
    min_client_version: str
    """Up to four numbers joined by dots."""
    timestamp: str
    """When it was published: RFC 3339, UTC, whole seconds, `Z`."""
    changelog: str
    is_required: bool
    fallback_model: str | None
    files: tuple[FileEntry, ...]
    rollout_percent: int = 100
    """Share of the machines that get this release (`rollout`): 0 to 100."""
    rollout_salt: str = ""
    """What orders the machines for it."""

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in the bytes. TrustError if it is odd in any way, ClientTooOld if its format is a later one.

    Bounded: at most MAX_MANIFEST_BYTES and MAX_FILES. Accepts no key that this format does not have: a later format
    number announces them.
    """
    value = parse(data, what="the manifest", max_bytes=MAX_MANIFEST_BYTES)
    _check_format(value)
    fields = Fields(value, "the manifest", _MANIFEST_KEYS)
    rollout = Fields(fields.value("rollout"), "the roll-out of the manifest", _ROLLOUT_KEYS)
    manifest = Manifest(
        model=_name(fields, "model"),
        version=_name(fields, "version"),
        release=fields.integer("release", low=1, high=MAX_RELEASE),
        min_client_version=_client_version(fields),
        timestamp=_timestamp(fields),
        changelog=fields.text("changelog", max_bytes=MAX_CHANGELOG_BYTES),
        is_required=fields.flag("required"),
        fallback_model=_optional_name(fields, "fallbackModel"),
        files=tuple(_parse_file(item) for item in fields.items("files", low=1, high=MAX_FILES)),
        rollout_percent=rollout.integer("percent", low=0, high=100),
        rollout_salt=rollout.text("salt", max_bytes=MAX_SALT_BYTES),
    )
    check_file_paths([file.path for file in manifest.files])
    _check_fallbacks(manifest)
    return manifest


def dump_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON of the manifest: the same manifest always gives the same bytes (row D1 names the keys)."""
    return dump(
        {
            "format": FORMAT,
            "model": manifest.model,
            "version": manifest.version,
            "release": manifest.release,
            "minClientVersion": manifest.min_client_version,
            "timestamp": manifest.timestamp,
            "changelog": manifest.changelog,
            "required": manifest.is_required,
            "fallbackModel": manifest.fallback_model,
            "rollout": {"percent": manifest.rollout_percent, "salt": manifest.rollout_salt},
            "files": [
                {
                    "path": file.path,
                    "size": file.size_bytes,
                    "sha256": file.digest,
                    "version": file.version,
                    "required": file.is_required,
                    "fallback": file.fallback,
                    "chunks": file.chunk_list,
                }
                for file in manifest.files
            ],
        }
    )


def parse_chunk_list(data: bytes, file: FileEntry) -> ChunkList:
    """The chunk list that `file` names: right digest, right sum, sane records. TrustError otherwise.

    Costs one SHA-256 of `data` and O(chunks) memory (about 0.3 kB each).
    """
    if digest_of(data) != file.chunk_list:
        raise TrustError(
            f"the chunk list of {file.path!r} is not the signed one", advice="fetch it again or from another source"
        )
    return parse_chunk_records(data, file.size_bytes)


def is_client_version(text: str) -> bool:
    """Whether `text` is up to four numbers joined by dots."""
    return _VERSION.fullmatch(text) is not None


def check_client_version(manifest: Manifest, client_version: str) -> None:
    """ClientTooOld if the manifest needs a newer Kensho than `client_version` (row D14).

    Numbers are compared, a suffix such as `.dev3` is not: a pre-release counts as its release.
    """
    if _numbers(client_version) < _numbers(manifest.min_client_version):
        raise ClientTooOld(
            f"model {manifest.model!r} {manifest.version} needs Kensho {manifest.min_client_version} or newer; "
            f"this is {client_version}",
            advice="update Kensho; what is installed keeps working",
            needed_version=manifest.min_client_version,
        )


_MANIFEST_KEYS = {
    "format", "model", "version", "release", "minClientVersion", "timestamp",
    "changelog", "required", "fallbackModel", "rollout", "files",
}  # fmt: skip
_ROLLOUT_KEYS = {"percent", "salt"}
_FILE_KEYS = {"path", "size", "sha256", "version", "required", "fallback", "chunks"}
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def _check_format(value: object) -> None:
    """Before the keys are looked at: a later format may have others."""
    found = value.get("format") if isinstance(value, dict) else None
    if type(found) is not int or found < 1:
        refuse("the manifest says no format number")
    if found > FORMAT:
        raise ClientTooOld(
            f"the manifest has format {found}; this Kensho reads format {FORMAT}",
            advice="update Kensho; what is installed keeps working",
        )


def _parse_file(item: object) -> FileEntry:
    fields = Fields(item, "a file of the manifest", _FILE_KEYS)
    return FileEntry(
        path=fields.text("path", max_bytes=MAX_PATH_BYTES),
        size_bytes=fields.integer("size", low=0, high=MAX_FILE_BYTES),
        digest=parse_digest(fields.text("sha256", max_bytes=64)),
        version=_name(fields, "version"),
        is_required=fields.flag("required"),
        fallback=fields.optional_text("fallback", max_bytes=MAX_PATH_BYTES),
        chunk_list=parse_digest(fields.text("chunks", max_bytes=64)),
    )


def _name(fields: Fields, key: str) -> str:
    name = fields.text(key, max_bytes=64)
    try:
        return check_name(name, key)
    except ConfigError as error:
        raise TrustError(f"the manifest: {error.message}", advice="tell its publisher") from error


def _optional_name(fields: Fields, key: str) -> str | None:
    return None if fields.optional_text(key, max_bytes=64) is None else _name(fields, key)


def _client_version(fields: Fields) -> str:
    text = fields.text("minClientVersion", max_bytes=64)
    if not is_client_version(text):
        refuse(f"the manifest: minClientVersion {text!r} is not a version")
    return text


def _timestamp(fields: Fields) -> str:
    text = fields.text("timestamp", max_bytes=20)
    try:
        if not _TIME.fullmatch(text):
            raise ValueError(text)
        datetime.fromisoformat(text)
    except ValueError:
        refuse(f"the manifest: timestamp {text!r} is not a time")
    return text


def _check_fallbacks(manifest: Manifest) -> None:
    """Each names another file, and following them ends: a reader may follow them without counting."""
    fallbacks = {file.path: file.fallback for file in manifest.files}
    ending: set[str] = set()
    for file in manifest.files:
        chain = {file.path}
        following = file.fallback
        while following is not None and following not in ending:
            if following in chain or following not in fallbacks:
                refuse(f"the manifest: the fallback of {file.path!r} is not another file")
            chain.add(following)
            following = fallbacks[following]
        ending |= chain


def _numbers(version: str) -> tuple[int, ...]:
    found = _VERSION.match(version)
    numbers = [int(part) for part in found.group().split(".")] if found else []
    return tuple([*numbers, 0, 0, 0, 0][:4])
