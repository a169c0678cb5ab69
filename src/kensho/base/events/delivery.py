"""Facts about publishing, pulling, checking and repairing."""

from typing import ClassVar

from kensho.base.events.event import Event, Level, Service


class ReleasePublished(Event, kw_only=True):
    name: ClassVar[str] = "delivery.release.published"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = (
        "published {model} {version}: {files} files, {chunks} chunks, {bytes_source} bytes, {bytes_packed} packed"
    )
    model: str
    version: str
    files: int
    chunks: int
    bytes_source: int
    bytes_packed: int


class RootTrusted(Event, kw_only=True):
    name: ClassVar[str] = "delivery.root.trusted"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "trusting root version {root_version} of {url}"
    root_version: int
    url: str


class ManifestAccepted(Event, kw_only=True):
    name: ClassVar[str] = "delivery.manifest.accepted"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "manifest of {model} {version} is signed and acceptable"
    model: str
    version: str
    digest: str


class ManifestRejected(Event, kw_only=True):
    name: ClassVar[str] = "delivery.manifest.rejected"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "error"
    text: ClassVar[str] = "metadata refused: {reason}"
    model: str
    reason: str


class PlanMade(Event, kw_only=True):
    name: ClassVar[str] = "delivery.plan.made"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = (
        "{model} {version}: fetch {bytes_fetch} bytes in {requests} requests, reuse {bytes_reuse} bytes"
    )
    model: str
    version: str
    bytes_fetch: int
    bytes_reuse: int
    requests: int


class DownloadProgress(Event, kw_only=True):
    name: ClassVar[str] = "delivery.download.progress"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "debug"
    text: ClassVar[str] = "{model}: {done} of {total} bytes verified"
    model: str
    done: int
    total: int


class DownloadRetry(Event, kw_only=True):
    name: ClassVar[str] = "delivery.download.retry"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{source} failed ({reason}); attempt {attempt} in {delay_s:.1f} s"
    source: str
    reason: str
    attempt: int
    delay_s: float


class ChunkRejected(Event, kw_only=True):
    name: ClassVar[str] = "delivery.chunk.rejected"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{source} delivered wrong bytes for chunk {chunk} of {path}; not used"
    source: str
    path: str
    chunk: int
    digest: str


class ChunkCorrupt(Event, kw_only=True):
    name: ClassVar[str] = "delivery.chunk.corrupt"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "error"
    text: ClassVar[str] = "chunk {chunk} of {model} {version} {path} is damaged on this disk"
    model: str
    version: str
    path: str
    chunk: int


class ChunkRepaired(Event, kw_only=True):
    name: ClassVar[str] = "delivery.chunk.repaired"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "chunk {chunk} of {path} mended from {source} ({size_bytes} bytes)"
    path: str
    chunk: int
    size_bytes: int
    source: str


class RepairPostponed(Event, kw_only=True):
    """The background scrub found damage that cannot be mended now."""

    name: ClassVar[str] = "delivery.repair.postponed"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{files} damaged files cannot be mended now ({reason}); again in {delay_s:.0f} s"
    files: int
    reason: str
    delay_s: float


class ScrubFailed(Event, kw_only=True):
    """The background scrub could not read or write; it goes on by itself."""

    name: ClassVar[str] = "delivery.scrub.failed"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "error"
    text: ClassVar[str] = "the background check stopped ({reason}); again in {delay_s:.0f} s"
    reason: str
    delay_s: float


class FallbackActivated(Event, kw_only=True):
    name: ClassVar[str] = "delivery.fallback.activated"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{model}: {path} cannot be had ({reason}); using {fallback}"
    model: str
    path: str
    fallback: str
    reason: str


class ModelUnavailable(Event, kw_only=True):
    """A whole model could not be had, and none of its versions is installed."""

    name: ClassVar[str] = "delivery.model.unavailable"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "{model} {version} cannot be had ({reason}); instead: {fallback}"
    model: str
    version: str
    reason: str
    fallback: str


class UpdateApplied(Event, kw_only=True):
    name: ClassVar[str] = "delivery.update.applied"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{model} is now {version}: {bytes_fetched} bytes fetched, {bytes_reused} bytes reused"
    model: str
    version: str
    bytes_fetched: int
    bytes_reused: int


class RolledBack(Event, kw_only=True):
    name: ClassVar[str] = "delivery.update.rolled_back"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{model} went back from {from_version} to {to_version}, from this disk"
    model: str
    from_version: str
    to_version: str


class CheckNotKept(Event, kw_only=True):
    """The disk takes no note of what was checked; that holds all the same."""

    name: ClassVar[str] = "delivery.check.not_kept"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "warning"
    text: ClassVar[str] = "what was just checked is checked again next time: {reason}"
    kind: str
    reason: str


class CheckFinished(Event, kw_only=True):
    name: ClassVar[str] = "delivery.check.finished"
    service: ClassVar[Service] = "delivery"
    level: ClassVar[Level] = "info"
    text: ClassVar[str] = "{kind} check: {files} files, {bytes_hashed} bytes hashed, {damaged_chunks} damaged chunks"
    kind: str
    files: int
    bytes_hashed: int
    damaged_chunks: int
    seconds: float
