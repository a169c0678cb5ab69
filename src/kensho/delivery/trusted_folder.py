"""The folder of accepted TUF metadata (STORE/trusted): small files that change one by one, atomically, under a lock.

    root.json timestamp.json snapshot.json targets.json    as last accepted
    <role>.json                                             delegated roles, as last accepted, by quoted name
    first_root.record                                       what the person handed over
    refresh.record                                          when the latest refresh succeeded, what expires first

No role can have the name of a record. Nothing here imports tuf: an offline start can say since when it is offline.

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
from kensho.base.structs import Struct
from kensho.delivery.disk import Disk, storage_errors
from kensho.delivery.durable import make_folders, read_document, write_document
from kensho.delivery.strict_json import Fields, dump, parse

MAX_BYTES: Final = {"root": 512_000, "timestamp": 16_384, "snapshot": 2_000_000, "targets": 5_000_000}
"""python-tuf's limits (ngclient/config.py)."""
_FIRST_ROOT: Final = "/first_root"
_REFRESH: Final = "/refresh"
"""Own records: a slash is in no quoted name of a role."""
_LATEST_S = 253_402_300_799
"""The last second of the year 9999: datetime ends there."""


class Refreshed(Struct):
    """The latest refresh that succeeded: updates are safe until `expires`; what is installed works after it, too."""

    at: datetime
    role: str
    """Which of the four roles expires first."""
    expires: datetime
    """When it does, UTC, whole seconds."""


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
        first, current = self.read(_FIRST_ROOT), self.read("root")
        if first is None or current is None or not is_root(current):
            self.commit(_FIRST_ROOT, root, first)
            self.commit("root", root, current)
            return root
        if root not in (first, current):
            raise ConfigError(
                f"{self.path} already trusts another root", advice="choose another store for this publisher"
            )
        self.commit("root", current, current)  # it may have been written by a process killed before it could sync
        return current

    def read(self, name: str) -> bytes | None:
        """The document last accepted. None if there is none, or if it is too long to have been accepted."""
        try:
            with storage_errors("read the trusted metadata", self.path):
                return read_document(self._disk, self._file(name), max_bytes=MAX_BYTES.get(name, MAX_BYTES["targets"]))
        except TrustError:
            return None

    def commit(self, name: str, data: bytes, before: bytes | None) -> None:
        """Replace the document, if it still is `before` (as `read` gave it). StoreBusy if it is not."""
        with storage_errors("write the trusted metadata", self.path), self._lock():
            found = self.read(name)
            if found == data:
                self._disk.fsync_folder(self.path)  # another wrote it, and may have been killed before that
                return
            if found != before:
                raise StoreBusy(
                    f"another process changed the trusted metadata in {self.path} meanwhile", advice="run it again"
                )
            write_document(self._disk, self._file(name), data)

    def refreshed(self) -> Refreshed | None:
        """Of the latest successful refresh; None before the first one, or if the record is damaged. No network."""
        if (data := self.read(_REFRESH)) is not None:
            try:
                fields = Fields(parse(data, what="the record", max_bytes=200), "the record", {"at", "role", "expires"})
                at, expires = (fields.integer(name, low=0, high=_LATEST_S) for name in ("at", "expires"))
                role = fields.text("role", max_bytes=20)
                return Refreshed(datetime.fromtimestamp(at, UTC), role, datetime.fromtimestamp(expires, UTC))
            except TrustError:
                pass
        return None

    def latest_seen(self) -> datetime:
        """The floor of the clock. The beginning of time if there is none, or if it is damaged: it only tightens."""
        found = self.refreshed()
        return found.at if found else datetime.fromtimestamp(0, UTC)

    def note_refresh(self, now: Refreshed) -> None:
        """A refresh has succeeded: the clock is never below `now.at` again. An older view changes nothing.

        If another process is noting its own at this moment, that one does.
        """
        if now.at >= self.latest_seen():
            facts = {"at": int(now.at.timestamp()), "role": now.role, "expires": int(now.expires.timestamp())}
            with suppress(StoreBusy):
                self.commit(_REFRESH, dump(facts), self.read(_REFRESH))

    def _file(self, name: str) -> Path:
        return self.path / (f"{name[1:]}.record" if name.startswith("/") else f"{name}.json")

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
