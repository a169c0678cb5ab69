"""Where published bytes come from: the `Source` protocol, and the wrappers that make it dependable.

Implementations: `folder_source` (USB stick, file://), `http_source` (any web server), `kensho.testing.repository`
(memory). Wrappers: `Retrying(Failover([a, b]))` asks b at once when a fails, and pauses when both do.

A source is not trusted: whatever it returns is checked against signed digests by its caller. Its own duty is only
to be bounded (in bytes and in time) and to say honestly that it could not deliver.
"""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from kensho.base.backoff import Rng, next_delay_s
from kensho.base.clock import Clock, Seconds
from kensho.base.errors import ConfigError, NetworkNotAllowed, NotFoundAtSource, TransportError
from kensho.base.events import DownloadRetry, Emit
from kensho.delivery.folder_source import FolderSource

PROGRESS_BYTES = 64 << 10
"""What a connection must have brought before its failure is forgiven: a server that cuts after each byte would else be
asked for ever. A guess: half a second of a bad 4G link."""


class Source(Protocol):
    """Reads a repository (metadata/, targets/, packs/). Thread-safe: the updater reads ranges in parallel."""

    @property
    def name(self) -> str:
        """For events and blame; holds no credentials."""
        ...

    @property
    def bytes_fetched(self) -> int:
        """Bytes of every response body so far, metadata and refused bodies included."""
        ...

    @property
    def requests(self) -> int:
        """Requests so far, failed ones included."""
        ...

    def read(self, path: str, *, max_bytes: int) -> bytes:
        """The whole small file. NotFoundAtSource if there is none; TransportError if it cannot be had or has more
        than `max_bytes` (stops reading there: endless-data attack)."""
        ...

    def read_range(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """Exactly `length` bytes from `offset`, in non-empty pieces of at most 1 MiB; anything else is a
        TransportError or NotFoundAtSource, possibly after some pieces were yielded. Close the iterator to stop."""
        ...

    def close(self) -> None:
        """Give back connections. Idempotent; the source may be used again (it reconnects)."""
        ...


class Retrying:
    """A source that does not give up at the first failure: waits with growing, jittered pauses and goes on from the
    byte it had reached. `NotFoundAtSource` and errors with the fact `is_final` are not tried again.

    At most `attempts` failures in a row *without progress* (64 KiB) for one call; a server's `Retry-After` (fact
    `retry_after_s`) is honoured up to `cap_s`, since a longer one means: come back in another run.
    """

    def __init__(
        self,
        inner: Source,
        *,
        emit: Emit,
        clock: Clock,
        rng: Rng,
        attempts: int = 5,
        base_s: Seconds = 0.5,
        cap_s: Seconds = 30.0,
    ) -> None:
        self._inner, self._emit, self._clock, self._rng = inner, emit, clock, rng
        self._attempts, self._base_s, self._cap_s = attempts, base_s, cap_s

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def bytes_fetched(self) -> int:
        return self._inner.bytes_fetched

    @property
    def requests(self) -> int:
        return self._inner.requests

    def read(self, path: str, *, max_bytes: int) -> bytes:
        failures, delay_s = 0, 0.0
        while True:
            try:
                return self._inner.read(path, max_bytes=max_bytes)
            except TransportError as error:
                failures += 1
                delay_s = self._pause(error, failures, delay_s)

    def read_range(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        end, failures, delay_s = offset + length, 0, 0.0
        while offset < end:
            start = offset
            try:
                for piece in self._inner.read_range(path, offset, end - offset):
                    offset += len(piece)
                    yield piece
            except TransportError as error:
                if offset - start >= PROGRESS_BYTES:
                    failures, delay_s = 0, 0.0
                failures += 1
                delay_s = self._pause(error, failures, delay_s)

    def close(self) -> None:
        self._inner.close()

    def _pause(self, error: TransportError, failures: int, previous_s: Seconds) -> Seconds:
        is_final = isinstance(error, NotFoundAtSource | NetworkNotAllowed) or bool(error.facts.get("is_final"))
        asked_s = error.facts.get("retry_after_s")
        asked_s = float(asked_s) if isinstance(asked_s, int | float) else 0.0
        if is_final or failures >= self._attempts or asked_s > self._cap_s:
            raise error
        delay_s = next_delay_s(previous_s, self._rng, base_s=self._base_s, cap_s=self._cap_s)
        # Never earlier than the server asked, and spread after it: a fleet that was told "60 s" must not return as one.
        wait_s = max(delay_s, asked_s + self._rng() * delay_s if asked_s else 0.0)
        self._emit(DownloadRetry(source=self.name, reason=error.message, attempt=failures + 1, delay_s=wait_s))
        self._clock.sleep(wait_s)
        return delay_s


class Failover:
    """Several sources as one: each call goes to the one with the fewest faults so far, then to the next.

    A range goes on from the byte that was reached. `blame` lets the caller, who alone knows the digests, say that what
    the calling thread just got was wrong; the culprit is then asked last.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise ValueError("at least one source")
        self._sources = tuple(sources)
        self._faults = [0] * len(sources)
        self._last = threading.local()

    @property
    def name(self) -> str:
        return " or ".join(source.name for source in self._sources)

    @property
    def bytes_fetched(self) -> int:
        return sum(source.bytes_fetched for source in self._sources)

    @property
    def requests(self) -> int:
        return sum(source.requests for source in self._sources)

    def read(self, path: str, *, max_bytes: int) -> bytes:
        errors: list[TransportError] = []
        for index in self._order():
            self._last.index = index
            try:
                return self._sources[index].read(path, max_bytes=max_bytes)
            except TransportError as error:
                self._count(index, error)
                errors.append(error)
        raise _most_hopeful(errors)

    def read_range(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        errors: list[TransportError] = []
        end = offset + length
        for index in self._order():
            try:
                for piece in self._sources[index].read_range(path, offset, end - offset):
                    offset += len(piece)
                    self._last.index = index
                    yield piece
                return
            except TransportError as error:
                self._count(index, error)
                errors.append(error)
        raise _most_hopeful(errors)

    def served_by(self) -> str:
        """The name of the source that gave this thread its last bytes."""
        return self._sources[getattr(self._last, "index", 0)].name

    def blame(self) -> str:
        """The bytes last given to this thread were wrong. Returns the name of the source they came from."""
        index: int = getattr(self._last, "index", 0)
        self._faults[index] += 1
        return self._sources[index].name

    def close(self) -> None:
        for source in self._sources:
            source.close()

    def _order(self) -> list[int]:
        return sorted(range(len(self._sources)), key=lambda index: self._faults[index])

    def _count(self, index: int, error: TransportError) -> None:
        # "No such file" is an answer: the next root version is asked for at every refresh, and is mostly not there.
        if not isinstance(error, NotFoundAtSource):
            self._faults[index] += 1


def dependable(sources: Sequence[Source], *, emit: Emit, clock: Clock, rng: Rng) -> tuple[Retrying, Failover]:
    """The usual wrapping: what to read from, and whom to tell about wrong bytes."""
    failover = Failover(sources)
    return Retrying(failover, emit=emit, clock=clock, rng=rng), failover


def open_source(url: str, *, clock: Clock, proxy: str | None, allow_network: bool) -> Source:
    """The source for an address: http(s)://, file:// or a folder's path. No connection is made yet.

    ConfigError for anything else; NetworkNotAllowed if the address needs the network and it is forbidden.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme == "file":
        folder = Path(unquote(rest) if separator else url)
        if separator and not folder.is_absolute():
            raise ConfigError(f"{url!r} names no folder", advice="write file:///absolute/path")
        return FolderSource(folder)
    if scheme not in ("http", "https"):
        raise ConfigError(f"{url!r} cannot be read", advice="use http://, https://, file:// or the path of a folder")
    if not allow_network:
        raise NetworkNotAllowed(
            f"the network is needed for {scheme}://..., and it is not allowed",
            advice="allow it, or name a folder (USB stick) as the source",
        )
    from kensho.delivery.http_source import HttpSource

    return HttpSource(url, clock=clock, proxy=proxy)


def _most_hopeful(errors: Sequence[TransportError]) -> TransportError:
    """What to report when all failed: not found only if all say so, else the first that may pass by waiting."""
    others = [error for error in errors if not isinstance(error, NotFoundAtSource)]
    return next((error for error in others if not error.facts.get("is_final")), others[0] if others else errors[0])
