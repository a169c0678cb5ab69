"""Where published bytes come from: the `Source` protocol. Implementations are `folder_source` (USB stick, file://),
`http_source` (any web server) and `kensho.testing.repository` (memory); wrappers that retry and fail over build on it.

A source is not trusted: whatever it returns is checked against signed digests by its caller. Its own duty is only
to be bounded (in bytes and in time) and to say honestly that it could not deliver.
"""

from collections.abc import Iterator
from typing import Protocol


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
        TransportError or NotFoundAtSource, possibly after some pieces were yielded. Close the iterator to stop early."""
        ...

    def close(self) -> None:
        """Give back connections. Idempotent; the source may be used again (it reconnects)."""
        ...
