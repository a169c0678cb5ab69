"""Compiled graphs on disk: `graphs/<key>/`, never served unless every byte was verified (rows R2, R3, R7, R8).

Rules: (1) an entry appears by rename, complete, hashed and fsynced, or not at all; (2) every byte is hashed once per
machine and whenever a file's stamp changed (`graph_record`); anything else than the verified bytes is a miss, and is
dropped by whoever compiles the key again; (3) one process compiles a key (`compile_lock`), the others wait; (4) an
entry in use is pinned and not evicted; the rest is evicted longest unused first when the bound is passed; (5) what
the disk refuses is a `StorageError` from the methods that write: the caller works without the cache.

Blocking; a lookup of a verified entry costs about a millisecond. Bits that rot on the disk itself under an unchanged
stamp are found only by `verify`, which hashes: call it in the background.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.errors import Damaged, StorageError
from kensho.base.events import Emit, GraphDropped
from kensho.base.ids import GraphKey
from kensho.base.structs import Struct
from kensho.runtime.compile_failures import CompileFailures, add_failure, read_failures, write_failures
from kensho.runtime.graph_hashing import verify_graph
from kensho.runtime.graph_kin import find_replaced
from kensho.runtime.graph_record import (
    MAX_RECORD_BYTES,
    RECORD_FILE,
    CachedGraph,
    GraphRecord,
    Stamp,
    choose_evictions,
    dump_record,
    parse_record,
    stamp_of,
)
from kensho.runtime.graph_statistics import GraphStatistics, count_load, read_statistics
from kensho.runtime.header import (
    GRAPH_FILE,
    HEADER_FILE,
    WEIGHTS_FILE,
    GraphHeader,
    KeyFields,
    graph_key,
    read_header,
)
from kensho.runtime.pins import FileLock, Pin, claim_unpinned, is_pinned, pin_graph
from kensho.runtime.plain_file import read_plain
from kensho.runtime.temp_folder import TempFolder, Token, sweep

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
_FILES = (HEADER_FILE, GRAPH_FILE, WEIGHTS_FILE)
_KEY_LENGTH = 64
_MODE = 0o644
"""Of an entry's files, whatever the umask says: see `_stamps`."""

MissReason = Literal["absent", "damaged", "unreadable", "format_older", "format_newer"]
"""format_newer: a later Kensho wrote it; it is left alone."""


class Hit(Struct):
    """A verified entry, pinned until `pin` is closed."""

    folder: Path
    header: GraphHeader
    pin: Pin


class Miss(Struct):
    reason: MissReason
    detail: str


class GraphCache:
    """The folder `graphs/` of a store. Safe to use from several processes and threads."""

    def __init__(self, folder: Path, *, limit_bytes: int, token: Token, emit: Emit) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._token = token
        self._emit = emit

    def lookup(self, key: GraphKey) -> Hit | Miss:
        """The entry, or why there is none. Hashes it when it was never verified or its files' stamps changed."""
        folder = self._folder / key
        try:
            pin = pin_graph(folder)
        except (FileNotFoundError, NotADirectoryError):
            return self._miss_without_header(folder)
        except OSError as error:
            return Miss("unreadable", str(error.strerror))
        try:
            header = self._check(key, folder, has_to_hash=False)
        except Damaged as error:
            pin.close()
            return Miss(_reason(error), error.message)
        except BaseException:
            pin.close()
            raise
        return Hit(folder, header, pin)

    def verify(self, key: GraphKey) -> None:
        """Hash every byte of the entry (0.5 ms per MiB), whatever its stamps. Raises Damaged: `drop` it then."""
        self._check(key, self._folder / key, has_to_hash=True)

    def peek(self, key: GraphKey) -> GraphHeader:
        """The header of an entry, which is not used by that; no other byte is checked. Raises Damaged."""
        self._stamps(self._folder / key)  # a pipe in the place of a file is never opened
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

    def note_failure(self, key: GraphKey, now_wall_s: Seconds, stage: str, reason: str) -> None:
        """Remember that a compile of this key failed; the caller holds its `compile_lock`. A good one forgets it."""
        write_failures(self._failures_file(key), add_failure(self.failures(key), now_wall_s, stage, reason))

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
            for name in _FILES:
                with contextlib.suppress(PermissionError):  # a file system without modes
                    (temp.path / name).chmod(_MODE)
            _fsync_folder(temp.path)
            temp.path.rename(self._folder / key)
            _fsync_folder(self._folder)
            pin = pin_graph(self._folder / key)
        self._write_record(self._folder / key, self._stamps(self._folder / key), self._last_use() + 1)
        with contextlib.suppress(OSError):
            self._failures_file(key).unlink(missing_ok=True)
        for old, names in find_replaced(header.key, self.keys()).items():
            self.remove(old, f"replaced: another {' and '.join(names)}")
        self.evict(self._limit_bytes)
        return Hit(self._folder / key, header, pin)

    def entries(self) -> list[CachedGraph]:
        """All entries, damaged ones included, in the order in which they were used. Raises no error."""
        found = []
        for folder in self._folders():
            with contextlib.suppress(OSError):
                size = sum(path.lstat().st_size for path in folder.iterdir())
                record = self._read_record(folder)
                used = record.used if record else 0
                at_s = (folder / RECORD_FILE).lstat().st_mtime if record else None
                found.append(CachedGraph(GraphKey(folder.name), size, used, is_pinned(folder), at_s))
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
            for path in self._folder.glob("?" * _KEY_LENGTH + ".failed"):
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

    def _check(self, key: GraphKey, folder: Path, *, has_to_hash: bool) -> GraphHeader:
        # Before anything is read: a file that changes from now on does not fit its stamp.
        stamps = self._stamps(folder)
        header = read_header(folder)
        if graph_key(header.key) != key:
            raise _damaged(f"graph {key[:12]} holds another key's graph")
        record = self._read_record(folder)
        if has_to_hash or record is None or record.files != stamps:
            verify_graph(folder, header)
        last = self._last_use()
        if record is None or record.files != stamps or record.used < last:
            self._write_record(folder, stamps, last + 1)
        else:
            with contextlib.suppress(OSError):
                os.utime(folder / RECORD_FILE)  # for `graphs list`; nothing is decided by it
        return header

    def _miss_without_header(self, folder: Path) -> Miss:
        if os.path.lexists(folder):
            return Miss("damaged", "it has no header")
        return Miss("absent", "it was not compiled before")

    def _stamps(self, folder: Path) -> dict[str, Stamp]:
        stamps = {}
        owners = self._owners()
        for name in _FILES:
            try:
                found = (folder / name).lstat()
            except OSError as error:
                raise _damaged(f"{name} of the compiled graph is missing") from error
            if not stat.S_ISREG(found.st_mode):
                raise _damaged(f"{name} of the compiled graph is no plain file")
            # Hashes say that a graph is whole, not who made it: another user's is never executed.
            if found.st_uid not in owners or found.st_mode & stat.S_IWOTH:
                raise _damaged(f"{name} of the compiled graph may be written by another user")
            stamps[name] = stamp_of(found)
        return stamps

    def _owners(self) -> set[int]:
        """Whose files are trusted: ours, root's, and those of the cache folder's owner, who could replace any."""
        owners = {0, os.geteuid()}
        with contextlib.suppress(OSError):
            owners.add(self._folder.stat().st_uid)
        return owners

    def _read_record(self, folder: Path) -> GraphRecord | None:
        try:
            return parse_record(read_plain(folder / RECORD_FILE, MAX_RECORD_BYTES))
        except OSError:
            return None

    def _write_record(self, folder: Path, stamps: dict[str, Stamp], used: int) -> None:
        data = dump_record(GraphRecord(stamps, used))
        new = folder / f"{RECORD_FILE}.{self._token()}"
        # On a read-only disk the entry works all the same, and is hashed by each process that uses it.
        with contextlib.suppress(OSError):
            new.write_bytes(data)
            new.replace(folder / RECORD_FILE)

    def _failures_file(self, key: GraphKey) -> Path:
        return self._folder / f"{key}.failed"

    def _last_use(self) -> int:
        records = [self._read_record(folder) for folder in self._folders()]
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


def _damaged(message: str) -> Damaged:
    return Damaged(message, advice="the entry is dropped and the model compiled again", reason="damaged")


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
