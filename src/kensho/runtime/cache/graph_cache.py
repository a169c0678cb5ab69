"""Compiled graphs on disk: `graphs/<key>/`, never served unless every byte was verified (rows R2, R3, R7, R8).

Rules: (1) an entry appears by rename, complete, hashed and fsynced, or not at all; (2) every byte is hashed before the
first use after each boot of the machine, after a week, and whenever a file's stamp changed (`graph_record`); the graph
itself, which is small, before every use; anything else than the verified bytes is a miss, and is dropped by whoever
compiles the key again; (3) one process compiles a key (`compile_lock`), the others wait; (4) an entry in use is pinned
and not evicted; the rest is evicted longest unused first when the bound is passed; (5) what the disk refuses is a
`StorageError` from the methods that write: the caller works without the cache.

Blocking; a lookup of a verified entry costs two milliseconds, an unverified one 0.5 ms per MiB and processor.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import Damaged, StorageError
from kensho.base.events import Emit, GraphDropped
from kensho.base.ids import GraphKey
from kensho.base.structs import Struct, replace
from kensho.runtime.cache.graph_entry import FILES, damaged, read_record, read_stamps, write_record
from kensho.runtime.cache.graph_hashing import verify_files, verify_graph
from kensho.runtime.cache.graph_kin import find_replaced
from kensho.runtime.cache.graph_record import (
    MAX_RECORD_BYTES,
    RECORD_FILE,
    CachedGraph,
    GraphRecord,
    choose_evictions,
    is_trusted,
)
from kensho.runtime.cache.graph_statistics import GraphStatistics, count_load, read_statistics
from kensho.runtime.cache.header import (
    GRAPH_FILE,
    GraphHeader,
    KeyFields,
    graph_key,
    read_header,
)
from kensho.runtime.cache.pins import FileLock, Pin, claim_unpinned, is_pinned, pin_graph
from kensho.runtime.cache.temp_folder import TempFolder, Token, sweep
from kensho.runtime.compiling.compile_failures import CompileFailures, add_failure, read_failures, write_failures
from kensho.runtime.model.plain_file import read_plain

_LASTING = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOSYS,
        errno.EOPNOTSUPP,
    }
)
"""What the same call meets again a moment later. Anything else (EIO, ESTALE, EBUSY ...) may pass."""
_KEY_LENGTH = 64
_FAILURES = "?" * _KEY_LENGTH + ".failed"
_MODE = 0o644
"""Of an entry's files, whatever the umask says: see `_stamps`."""

MissReason = Literal["absent", "damaged", "unreadable", "format_older", "format_newer"]
"""format_newer: a later Kensho wrote it; it is left alone."""


class Hit(Struct):
    """A verified entry, pinned until `pin` is closed."""

    folder: Path
    header: GraphHeader
    pin: Pin
    is_proved: bool
    """In this boot of the machine it has passed its self-test; if not, `confirm` when it has."""


class Miss(Struct):
    reason: MissReason
    detail: str


class GraphCache:
    """The folder `graphs/` of a store. Safe to use from several processes and threads."""

    def __init__(self, folder: Path, *, limit_bytes: int, boot: str, clock: Clock, token: Token, emit: Emit) -> None:
        """`boot` names this boot of the machine; empty: no earlier process of it is trusted."""
        self._folder = folder
        self._boot = boot
        self._clock = clock
        self._limit_bytes = limit_bytes
        self._token = token
        self._emit = emit

    def lookup(self, key: GraphKey) -> Hit | Miss:
        """The entry, or why there is none. Hashes it when nobody vouches for its bytes."""
        folder = self._folder / key
        try:
            pin = pin_graph(folder)
        except (FileNotFoundError, NotADirectoryError):
            return self._miss_without_header(folder)
        except OSError as error:
            return Miss("unreadable", str(error.strerror))
        try:
            header, is_proved = self._check(key, folder)
        except Damaged as error:
            pin.close()
            return Miss(_reason(error), error.message)
        except BaseException:
            pin.close()
            raise
        return Hit(folder, header, pin, is_proved)

    def confirm(self, key: GraphKey) -> None:
        """The entry was found by `lookup` and has passed its self-test: trust it until the machine starts again, the
        week is over or a file changes. Raises no error."""
        folder = self._folder / key
        with contextlib.suppress(Damaged):
            stamps, record = read_stamps(folder, self._owners()), read_record(folder)
            if record and record.files == stamps:
                self._vouch(folder, record)

    def peek(self, key: GraphKey) -> GraphHeader:
        """The header of an entry, which is not used by that; no other byte is checked. Raises Damaged."""
        read_stamps(self._folder / key, self._owners())  # a pipe in the place of a file is never opened
        return read_header(self._folder / key)

    def keys(self) -> dict[GraphKey, KeyFields]:
        """What the readable entries were made from. A header of 270M takes under a millisecond."""
        found = {}
        for folder in self._folders():
            with contextlib.suppress(Damaged):
                found[GraphKey(folder.name)] = self.peek(GraphKey(folder.name)).key
        return found

    def failures(self, key: GraphKey) -> CompileFailures | None:
        """What is remembered of compiles of this key that failed."""
        return read_failures(self._failures_file(key))

    def note_failure(self, key: GraphKey, now_wall_s: Seconds, stage: str, reason: str, model: str) -> None:
        """Remember that a compile of this key failed; the caller holds its `compile_lock`. A good one forgets it."""
        write_failures(self._failures_file(key), add_failure(self.failures(key), now_wall_s, stage, reason, model))

    def all_failures(self) -> dict[GraphKey, CompileFailures]:
        """What is remembered of every key. Raises no error."""
        found = {}
        with contextlib.suppress(OSError):
            for path in sorted(self._folder.glob(_FAILURES)):
                failures = read_failures(path)
                if failures:
                    found[GraphKey(path.stem)] = failures
        return found

    def statistics(self) -> GraphStatistics:
        return read_statistics(self._folder)

    def count(self, seconds: Seconds, *, is_hit: bool) -> None:
        """Count a graph that was found, or compiled, for the statistics."""
        count_load(self._folder, seconds, is_hit=is_hit)

    def compile_lock(self, key: GraphKey) -> FileLock | None:
        """The right to make or drop this entry, None while another holds it. Raises StorageError."""
        with _translated("locked"):
            self._folder.mkdir(parents=True, exist_ok=True)
            return FileLock.on_file(self._folder / f"{key}.lock")

    def progress(self, key: GraphKey) -> bytes:
        """What the holder of the key's lock has noted on it; nothing, if it cannot be read."""
        try:
            return read_plain(self._folder / f"{key}.lock", MAX_RECORD_BYTES)
        except OSError:
            return b""

    def drop(self, key: GraphKey, reason: str) -> None:
        """Remove the entry; the caller holds its `compile_lock`. Who has it mapped keeps its bytes.

        It is renamed first: a half-removed entry is never seen under its name. Raises StorageError.
        """
        with _translated("cleaned"):
            aside = TempFolder.make(self._folder, self._token)
            try:
                (self._folder / key).rename(aside.path / key)
            except FileNotFoundError:
                return
            finally:
                aside.close()
        self._emit(GraphDropped(key=key, reason=reason))

    def make_temp(self) -> TempFolder:
        """An empty folder to compile into; first removes what killed compilers left. Raises StorageError."""
        with _translated("written"):
            sweep(self._folder)
            return TempFolder.make(self._folder, self._token)

    def publish(self, key: GraphKey, temp: TempFolder) -> Hit:
        """Make the complete graph in `temp` the entry of this key; the caller holds its `compile_lock`.

        Hashes every byte first (0.5 ms per MiB): Damaged if they are not what the header says. StorageError when the
        disk refuses or the graph is larger than the whole cache may be: verified, it can be served from `temp`.
        """
        header = read_header(temp.path)
        verify_graph(temp.path, header)
        if header.size_bytes > self._limit_bytes:
            raise StorageError(
                f"compiled graph of {header.size_bytes} bytes, the graph cache may have {self._limit_bytes}",
                advice="raise graph_cache_bytes",
            )
        with _translated("written"):
            for name in FILES:
                with contextlib.suppress(PermissionError):  # a file system without modes
                    (temp.path / name).chmod(_MODE)
            _fsync_folder(temp.path)
            temp.path.rename(self._folder / key)
            _fsync_folder(self._folder)
            pin = pin_graph(self._folder / key)
        stamps = read_stamps(self._folder / key, self._owners())
        self._vouch(self._folder / key, GraphRecord(stamps, self._last_use() + 1))
        with contextlib.suppress(OSError):
            self._failures_file(key).unlink(missing_ok=True)
        for old, names in find_replaced(header.key, self.keys()).items():
            self.remove(old, f"replaced: another {' and '.join(names)}")
        self.evict(self._limit_bytes)
        return Hit(self._folder / key, header, pin, is_proved=True)

    def entries(self) -> list[CachedGraph]:
        """All entries, damaged ones included, in the order in which they were used. Raises no error."""
        found = []
        for folder in self._folders():
            with contextlib.suppress(OSError):
                size = sum(path.lstat().st_size for path in folder.iterdir())
                record = read_record(folder)
                used = record.used if record else 0
                at_s = (folder / RECORD_FILE).lstat().st_mtime if record else None
                key = GraphKey(folder.name)
                found.append(CachedGraph(key, size, used, is_pinned(folder), at_s, self._is_newer(key)))
        return sorted(found, key=lambda entry: entry.used)

    def evict(self, limit_bytes: int) -> int:
        """Remove entries, longest unused first, until the rest fits (0: all that are not in use); returns how many.

        What the disk refuses to remove stays.
        """
        reason = "evicted: the graph cache is over its bound"
        return sum(self.remove(key, reason) for key in choose_evictions(self.entries(), limit_bytes))

    def tidy(self) -> None:
        """Remove what killed compilers left, and what is remembered of compiles that failed. Raises no error."""
        sweep(self._folder)
        with contextlib.suppress(OSError):
            for path in self._folder.glob(_FAILURES):
                path.unlink(missing_ok=True)

    def remove(self, key: GraphKey, reason: str) -> bool:
        """Drop the entry unless somebody uses or makes it, or the disk refuses; whether it is gone."""
        with contextlib.suppress(StorageError, OSError), contextlib.ExitStack() as locks:
            lock = self.compile_lock(key)
            if lock is None:
                return False
            locks.callback(lock.close, remove=True)
            # It may have been pinned since it was chosen; from here on nobody can.
            claim = claim_unpinned(self._folder / key)
            if claim is not None:
                locks.callback(claim.close)
                self.drop(key, reason)
                return True
        return False

    def _check(self, key: GraphKey, folder: Path) -> tuple[GraphHeader, bool]:
        """The header, and whether the entry is proved. Raises Damaged."""
        # Before anything is read: a file that changes from now on does not fit its stamp.
        stamps = read_stamps(folder, self._owners())
        header = read_header(folder)
        if graph_key(header.key) != key:
            raise damaged(f"graph {key[:12]} holds another key's graph")
        record, last = read_record(folder), self._last_use()
        used = record.used if record and record.used >= max(last, 1) else last + 1
        if record is None or not is_trusted(record, stamps, self._boot, self._clock.wall_s()):
            verify_graph(folder, header)
            write_record(folder, GraphRecord(stamps, used), self._token)
            return header, False
        verify_files(folder, header, {GRAPH_FILE})
        if used != record.used:
            write_record(folder, replace(record, used=used), self._token)
        else:
            with contextlib.suppress(OSError):
                os.utime(folder / RECORD_FILE)  # for `graphs list`; nothing is decided by it
        return header, True

    def _miss_without_header(self, folder: Path) -> Miss:
        if os.path.lexists(folder):
            return Miss("damaged", "it has no header")
        return Miss("absent", "it was not compiled before")

    def _owners(self) -> set[int]:
        """Whose files are trusted: ours, root's, and those of the cache folder's owner, who could replace any."""
        owners = {0, os.geteuid()}
        with contextlib.suppress(OSError):
            owners.add(self._folder.stat().st_uid)
        return owners

    def _vouch(self, folder: Path, record: GraphRecord) -> None:
        write_record(folder, replace(record, boot=self._boot, at_wall_s=self._clock.wall_s()), self._token)

    def _is_newer(self, key: GraphKey) -> bool:
        try:
            self.peek(key)
        except Damaged as error:
            return _reason(error) == "format_newer"
        return False

    def _failures_file(self, key: GraphKey) -> Path:
        return self._folder / f"{key}.failed"

    def _last_use(self) -> int:
        records = [read_record(folder) for folder in self._folders()]
        return max((record.used for record in records if record), default=0)

    def _folders(self) -> list[Path]:
        try:
            return [path for path in self._folder.iterdir() if len(path.name) == _KEY_LENGTH and path.is_dir()]
        except OSError:
            return []


def _reason(error: Damaged) -> MissReason:
    match error.facts.get("reason"):
        case "unreadable":
            return "unreadable"
        case "format_older":
            return "format_older"
        case "format_newer":
            return "format_newer"
        case _:
            return "damaged"


@contextlib.contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the graph cache cannot be {what}: {error.strerror}",
            advice="free space or mend the store's folder",
            may_pass=error.errno not in _LASTING,
        ) from error


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
