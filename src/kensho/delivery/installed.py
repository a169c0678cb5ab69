"""What is installed, what was verified, what happened: the values that the store's state holds. Pure."""

import os
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.ids import Digest
from kensho.base.structs import Struct, replace

EXPIRY_S = 30 * 86400.0
"""A record older than this is not believed: the file is hashed again (row D11). A guess; the scrub will shorten it."""
CLOCK_SLACK_S = 86400.0
"""A record from the future beyond this is not believed either: a clock was set back."""

HistoryWord = Literal["installed", "verified", "damaged", "repaired"]


class InstalledFile(Struct):
    """One file of an installed release."""

    path: str
    size_bytes: int
    digest: Digest
    chunk_list: Digest
    chunk_count: int
    is_required: bool
    used: Digest | None
    """The blob that stands at `path`: `digest`, that of its fallback, or None where an optional file is absent."""
    reason: str | None
    """Why it is not `digest` (row D8); None if it is."""


class Release(Struct):
    """An installed version of a model. `manifest` is the digest of its manifest document."""

    model: str
    version: str
    release: int
    manifest: Digest
    installed_at: Seconds
    files: tuple[InstalledFile, ...]

    @property
    def is_degraded(self) -> bool:
        return any(file.used != file.digest for file in self.files)


class ModelRow(Struct):
    model: str
    current: str
    previous: str | None
    pinned: str | None
    uses: int
    used_at: Seconds | None


class Shortfall(Struct):
    """A model is not as its publisher meant it on this machine (row D8): files are missing, or all of it is."""

    model: str
    version: str
    """The release that could not be had in full."""
    since: Seconds
    """When it was first so; later attempts that end the same do not change it."""
    reason: str
    ends: str
    """What would end it, in words."""
    fallback_model: str | None = None
    """The model that its publisher named to answer instead. Known here even if nothing of `model` is installed."""


class Record(Struct):
    """The file had exactly the bytes of `digest` at `verified_at`, and the kernel said this of it.

    A record belongs to an inode, so all hard links of a blob share one.
    """

    dev: int
    inode: int
    digest: Digest
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    verified_at: Seconds

    @classmethod
    def of(cls, digest: Digest, found: os.stat_result, verified_at: Seconds) -> "Record":
        return cls(found.st_dev, found.st_ino, digest, found.st_size, found.st_mtime_ns, found.st_ctime_ns, verified_at)

    def vouches_for(self, digest: Digest, found: os.stat_result, *, now: Seconds) -> bool:
        """Nothing touched the file since it was hashed, and that was not too long ago, nor in the future."""
        return (
            self == Record.of(digest, found, self.verified_at) and -CLOCK_SLACK_S <= now - self.verified_at <= EXPIRY_S
        )

    def relinked(self, found: os.stat_result) -> "Record | None":
        """The record after our own link, unlink or rename, which change ctime alone; None if more was changed."""
        after = Record.of(self.digest, found, self.verified_at)
        return after if replace(after, ctime_ns=self.ctime_ns) == self else None


class HistoryEntry(Struct):
    """Something that happened to the bytes of one digest (row D13)."""

    at: Seconds
    what: HistoryWord
    how: str
