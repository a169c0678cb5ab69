"""The folder of accepted TUF metadata (STORE/trusted): small files that change one by one, atomically, under a lock.

    root.json timestamp.json snapshot.json targets.json    as last accepted
    first_root.json                                         what the person handed over
    clock.json                                              time of the latest successful refresh

Several processes may refresh the same folder. Each reads without the lock, checks, then commits under it, naming what
it had read: if another process committed something else meanwhile, the commit is StoreBusy, so that a process with an
older view never puts metadata back. Committing what is there already is no change and no error.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from kensho.base.errors import ConfigError, StoreBusy, TrustError
from kensho.delivery.disk import Disk, storage_errors
from kensho.delivery.durable import make_folders, read_document, write_document
from kensho.delivery.strict_json import Fields, dump, parse

MAX_BYTES: Final = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
"""python-tuf's limits (ngclient/config.py)."""
_LATEST_S = 253_402_300_799
"""The last second of the year 9999: datetime ends there."""


class TrustedFolder:
    """Methods raise StorageError if the disk refuses."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self.path = folder
        self._disk = disk

    def begin(self, root: bytes, is_root: Callable[[bytes], bool]) -> bytes:
        """Trust `root` first of all; returns the root that is trusted now: a later one if it was begun before.

        ConfigError if it was begun with another root. A trusted root that is damaged (`is_root` says so) is replaced.
        """
        with storage_errors("trust the root", self.path):
            make_folders(self._disk, self.path)
        first, current = self.read("first_root"), self.read("root")
        if first is None or current is None or not is_root(current):
            self.commit("first_root", root, first)
            self.commit("root", root, current)
            return root
        if root not in (first, current):
            raise ConfigError(
                f"{self.path} already trusts another root", advice="choose another store for this publisher"
            )
        return current

    def read(self, name: str) -> bytes | None:
        """The document last accepted. None if there is none, or if it is too long to have been accepted."""
        try:
            with storage_errors("read the trusted metadata", self.path):
                return read_document(self._disk, self._file(name), max_bytes=MAX_BYTES.get(name, MAX_BYTES["root"]))
        except TrustError:
            return None

    def commit(self, name: str, data: bytes, before: bytes | None) -> None:
        """Replace the document, if it still is `before` (as `read` gave it). StoreBusy if it is not."""
        with storage_errors("write the trusted metadata", self.path), self._lock():
            found = self.read(name)
            if found == data:
                return
            if found != before:
                raise StoreBusy(
                    f"another process changed the trusted metadata in {self.path} meanwhile", advice="run it again"
                )
            write_document(self._disk, self._file(name), data)

    def latest_seen(self) -> datetime:
        """The floor of the clock. The beginning of time if there is none, or if it is damaged: it only tightens."""
        data = self.read("clock")
        if data is not None:
            try:
                fields = Fields(parse(data, what="clock.json", max_bytes=100), "clock.json", {"latest"})
                return datetime.fromtimestamp(fields.integer("latest", low=0, high=_LATEST_S), UTC)
            except TrustError:
                pass
        return datetime.fromtimestamp(0, UTC)

    def raise_floor(self, now: datetime) -> None:
        """The clock is never below `now` again. If another process is raising it at this moment, that one does."""
        if now > self.latest_seen():
            with suppress(StoreBusy):
                self.commit("clock", dump({"latest": int(now.timestamp())}), self.read("clock"))

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.json"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            fd = self._disk.lock(self.path / ".lock")
        except BlockingIOError as error:
            raise StoreBusy(f"another process is writing {self.path}", advice="run it again") from error
        try:
            yield
        finally:
            self._disk.close(fd)
