"""The manifest of one release of a model, and the chunk list of one file (prototype: `manifest.json`).

A manifest is small whatever the size of the model: it names files; each file names its chunk list, a separate
content-addressed document. Both are TUF targets, so their bytes are signed; parsing is strict all the same.
"""

from dataclasses import dataclass
from typing import Literal

from kensho.base.ids import Digest

Encoding = Literal["raw", "zstd", "planes2+zstd"]
"""How a chunk's bytes are stored in a pack: as they are; zstd; or split into the two byte planes of 16-bit words
(all low bytes, then all high bytes), then zstd."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of one file. Chunks of a list follow each other without gap: offset = sum of the sizes before."""

    digest: Digest
    """SHA-256 of the decoded bytes."""
    size_bytes: int
    pack: Digest
    """SHA-256 of the pack file that holds it: `packs/<pack>.pack`."""
    pack_offset: int
    encoded_bytes: int
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class ChunkList:
    chunks: tuple[Chunk, ...]

    @property
    def size_bytes(self) -> int:
        return sum(chunk.size_bytes for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class FileEntry:
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


@dataclass(frozen=True, slots=True)
class Manifest:
    """One release of one model (row D1). JSON names: `minClientVersion`, `timestamp`, `files` ... as in the prototype."""

    model: str
    version: str
    release: int
    """Rises by one with every publish of the model; the newest release has the highest."""
    min_client_version: str
    timestamp: str
    """When it was published: RFC 3339, UTC."""
    changelog: str
    is_required: bool
    fallback_model: str | None
    files: tuple[FileEntry, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)
