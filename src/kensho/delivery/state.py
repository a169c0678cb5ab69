"""What the store knows about its files: one SQLite database in WAL mode. The only file that speaks SQL.

A model becomes current in one transaction here, after all of its bytes are synced: that commit *is* the update. The
rows of an installed release hold all that a start needs (paths, sizes, digests): no manifest is parsed on that path.
Verification records say which bytes were hashed and what the kernel said of the file then; they expire.

Callers pass times as seconds since 1970. Methods block for at most BUSY_S, then raise StorageError; they may be called
from any thread.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kensho.base.clock import Seconds
from kensho.base.errors import StorageError
from kensho.base.ids import Digest
from kensho.base.structs import as_dict
from kensho.delivery.installed import HistoryEntry, HistoryWord, InstalledFile, ModelRow, Record, Release, Shortfall

BUSY_S = 5.0
MAX_HISTORY = 20_000
"""Rows of history kept, oldest dropped first: about 2 MB. A guess."""
MAX_RECORDS = 100_000
"""Verification records kept, about 15 MB; those verified longest ago are dropped first, and cost a hashing. A guess:
24 times the files of the largest model there can be."""
_CLIENT_ID = "client_id"
_SCRUB = "scrub"
_SHORTFALL = "shortfall/"
"""What a shortfall's setting is named: this, and the model."""

_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE models (
  model TEXT PRIMARY KEY, current TEXT NOT NULL, previous TEXT, pinned TEXT,
  uses INTEGER NOT NULL DEFAULT 0, used_at REAL
) WITHOUT ROWID;
CREATE TABLE releases (
  model TEXT NOT NULL, version TEXT NOT NULL, release INTEGER NOT NULL, manifest TEXT NOT NULL,
  installed_at REAL NOT NULL, PRIMARY KEY (model, version)
) WITHOUT ROWID;
CREATE TABLE files (
  model TEXT NOT NULL, version TEXT NOT NULL, path TEXT NOT NULL, size_bytes INTEGER NOT NULL, digest TEXT NOT NULL,
  chunk_list TEXT NOT NULL, chunk_count INTEGER NOT NULL,
  is_required INTEGER NOT NULL, used TEXT, reason TEXT, PRIMARY KEY (model, version, path)
) WITHOUT ROWID;
CREATE TABLE records (
  dev INTEGER NOT NULL, inode INTEGER NOT NULL, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL,
  mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, verified_at REAL NOT NULL, PRIMARY KEY (dev, inode)
) WITHOUT ROWID;
CREATE TABLE history (
  id INTEGER PRIMARY KEY, at REAL NOT NULL, digest TEXT NOT NULL, what TEXT NOT NULL, how TEXT NOT NULL
);
CREATE INDEX history_of ON history (digest, at);
CREATE TABLE checks (kind TEXT PRIMARY KEY, at REAL NOT NULL, damaged INTEGER NOT NULL) WITHOUT ROWID;
"""


class State:
    """The database. `create` makes it; the constructor opens it, read-only where it may not be written.

    On a read-only disk it may show the state before the last commits, if the last writer was killed: an older state is
    a whole one too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self.is_read_only = False
        with self._errors():
            self._db = self._connect()

    @staticmethod
    def create(path: Path) -> None:
        """The empty database, complete and durable when this returns. `path` must not exist yet; not atomic: the
        caller makes it under another name and renames it."""
        try:
            with sqlite3.connect(path, isolation_level=None) as db:
                # WAL mode last: `close` would fold a WAL into the file, and say nothing if the disk failed meanwhile.
                db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
                db.execute("PRAGMA journal_mode=WAL")
            db.close()
        except sqlite3.Error as error:
            raise _storage_error(path, error) from error

    def close(self) -> None:
        with self._lock:
            self._db.close()

    # --- what is installed ---

    def models(self) -> list[ModelRow]:
        with self._reading() as db:
            rows = db.execute("SELECT model, current, previous, pinned, uses, used_at FROM models ORDER BY model")
            return [ModelRow(*row) for row in rows]

    def releases(self, model: str | None = None) -> list[Release]:
        """Installed releases, newest first, of one model or of all."""
        with self._reading() as db:
            files: dict[tuple[str, str], list[InstalledFile]] = {}
            for name, version, path, size, digest, chunk_list, count, is_required, used, reason in db.execute(
                "SELECT model, version, path, size_bytes, digest, chunk_list, chunk_count, is_required, used, reason"
                " FROM files WHERE ?1 IS NULL OR model = ?1 ORDER BY path",
                (model,),
            ):
                found = InstalledFile(path, size, digest, chunk_list, count, bool(is_required), used, reason)
                files.setdefault((name, version), []).append(found)
            rows = db.execute(
                "SELECT model, version, release, manifest, installed_at FROM releases"
                " WHERE ?1 IS NULL OR model = ?1 ORDER BY model, release DESC",
                (model,),
            )
            return [Release(m, v, n, d, at, tuple(files.get((m, v), ()))) for m, v, n, d, at in rows]

    def install(
        self, release: Release, records: Iterable[Record], *, now: Seconds, shortfall: Shortfall | None = None
    ) -> None:
        """The release is there, and is the current one from now on: one transaction, durable when this returns.

        `shortfall` says what is missing of it; without one, an earlier shortfall of the model is over.
        """
        with self._writing() as db:
            key = (release.model, release.version)
            db.execute("DELETE FROM files WHERE model = ? AND version = ?", key)
            db.execute(
                "INSERT OR REPLACE INTO releases VALUES (?, ?, ?, ?, ?)",
                (*key, release.release, release.manifest, release.installed_at),
            )
            db.executemany(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (*key, f.path, f.size_bytes, f.digest, f.chunk_list, f.chunk_count, f.is_required, f.used, f.reason)
                    for f in release.files
                ],
            )
            self._put_records(db, records)
            self._switch(db, *key)
            self._end_shortfall(db, release.model)
            if shortfall:
                self._put_shortfall(db, shortfall)
            self._note(
                db, {f.used: f"{release.model} {release.version}" for f in release.files if f.used}, "installed", now
            )

    def resign(self, model: str, version: str, manifest: Digest) -> None:
        """An installed release has the same files under a manifest that was signed anew. Durable when this returns."""
        with self._writing() as db:
            db.execute("UPDATE releases SET manifest = ? WHERE model = ? AND version = ?", (manifest, model, version))

    def switch(self, model: str, version: str) -> None:
        """Another installed version becomes the current one. Durable when this returns."""
        with self._writing() as db:
            self._switch(db, model, version)

    def pin(self, model: str, version: str | None) -> None:
        with self._writing() as db:
            db.execute("UPDATE models SET pinned = ? WHERE model = ?", (version, model))

    def remove_release(self, model: str, version: str) -> None:
        """Forget an installed version that is neither current nor previous."""
        with self._writing() as db:
            for table in ("files", "releases"):
                db.execute(f"DELETE FROM {table} WHERE model = ? AND version = ?", (model, version))  # noqa: S608

    def note_use(self, model: str, *, now: Seconds) -> None:
        """A model was loaded (row D13); the counts are for warm-up and prefetch (rows D12, R6)."""
        with self._writing() as db:
            db.execute("UPDATE models SET uses = uses + 1, used_at = ? WHERE model = ?", (now, model))

    # --- what is missing (row D8) ---

    def shortfalls(self) -> dict[str, Shortfall]:
        """By model."""
        with self._reading() as db:
            rows = db.execute("SELECT value FROM settings WHERE name LIKE ? ORDER BY name", (f"{_SHORTFALL}%",))
            found = [Shortfall(**json.loads(value)) for (value,) in rows]
        return {shortfall.model: shortfall for shortfall in found}

    def put_shortfall(self, shortfall: Shortfall) -> None:
        """One a model, the latest; the caller keeps `since`."""
        with self._writing() as db:
            self._put_shortfall(db, shortfall)

    def end_shortfall(self, model: str) -> None:
        with self._writing() as db:
            self._end_shortfall(db, model)

    # --- what was verified ---

    def records(self) -> dict[tuple[int, int], Record]:
        """By (dev, inode)."""
        with self._reading() as db:
            rows = db.execute("SELECT dev, inode, digest, size_bytes, mtime_ns, ctime_ns, verified_at FROM records")
            return {(row[0], row[1]): Record(*row) for row in rows}

    def put_records(self, records: Iterable[Record]) -> None:
        """Not durable at once: a record that is lost costs another hashing."""
        with self._writing(is_durable=False) as db:
            self._put_records(db, records)

    def finish_check(
        self,
        kind: str,
        *,
        good: Iterable[Record],
        bad: Iterable[tuple[int, int]],
        damaged: int,
        now: Seconds,
    ) -> None:
        """A check of this kind ended: records of what was hashed and is right, inodes that nothing vouches for any
        more, and the number of damaged files. Not durable at once: it is on the start path, and an fsync is not."""
        with self._writing(is_durable=False) as db:
            self._put_records(db, good)
            db.executemany("DELETE FROM records WHERE dev = ? AND inode = ?", bad)
            db.execute("INSERT OR REPLACE INTO checks VALUES (?, ?, ?)", (kind, now, damaged))

    def finish_scrub(self, *, good: Iterable[Record], bad: Iterable[tuple[int, int]]) -> None:
        """What a scrub has found out about whole files. Not durable at once."""
        if self.is_read_only:
            return
        with self._writing(is_durable=False) as db:
            self._put_records(db, good)
            db.executemany("DELETE FROM records WHERE dev = ? AND inode = ?", bad)

    def scrub_cursor(self) -> str | None:
        """As `set_scrub_cursor` was given it; None before the first scrub."""
        return self.setting(_SCRUB)

    def set_scrub_cursor(self, cursor: str) -> None:
        """Where the scrub has got to. Not durable at once: one that is lost costs another hashing."""
        with self._writing(is_durable=False) as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (_SCRUB, cursor))

    def keep_records(self, inodes: set[tuple[int, int]]) -> None:
        """Forget the records of all other files. Not durable at once: a record too many vouches for nothing."""
        with self._writing(is_durable=False) as db:
            gone = [key for key in db.execute("SELECT dev, inode FROM records") if key not in inodes]
            db.executemany("DELETE FROM records WHERE dev = ? AND inode = ?", gone)

    def note(self, digests: Mapping[Digest, str], what: HistoryWord, *, now: Seconds) -> None:
        """History (row D13): the same thing happened to the bytes of each digest; the value says how. Not durable at
        once: nothing is decided by it."""
        with self._writing(is_durable=False) as db:
            self._note(db, digests, what, now)

    def history(self, digest: Digest) -> list[HistoryEntry]:
        """Newest first."""
        with self._reading() as db:
            rows = db.execute("SELECT at, what, how FROM history WHERE digest = ? ORDER BY id DESC", (digest,))
            return [HistoryEntry(*row) for row in rows]

    def checks(self) -> dict[str, tuple[Seconds, int]]:
        """Kind of check -> when it was last done, and how many files it found damaged."""
        with self._reading() as db:
            return {kind: (at, damaged) for kind, at, damaged in db.execute("SELECT kind, at, damaged FROM checks")}

    # --- settings of the store itself ---

    def setting(self, name: str) -> str | None:
        with self._reading() as db:
            row = db.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
            return None if row is None else str(row[0])

    def client_id(self) -> str:
        """A random name that this store gives itself when it is first asked; it is never sent anywhere. It decides at
        which percentage of a staged roll-out this machine takes part (`rollout`). Empty where nothing can be written.
        """
        found = self.setting(_CLIENT_ID)
        if found is None and not self.is_read_only:
            with self._writing(is_durable=False) as db:  # the commit of what it decides makes it durable
                db.execute("INSERT OR IGNORE INTO settings VALUES (?, ?)", (_CLIENT_ID, os.urandom(16).hex()))
            found = self.setting(_CLIENT_ID)
        return found or ""

    def set_setting(self, name: str, value: str) -> None:
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    # --- below: inside a transaction ---

    @staticmethod
    def _switch(db: sqlite3.Connection, model: str, version: str) -> None:
        # `previous` stays what it was when the same version is installed again (an optional file came late).
        db.execute(
            "INSERT INTO models (model, current) VALUES (?1, ?2) ON CONFLICT (model) DO UPDATE SET"
            " previous = CASE WHEN current = ?2 THEN previous ELSE current END, current = ?2",
            (model, version),
        )

    @staticmethod
    def _put_shortfall(db: sqlite3.Connection, shortfall: Shortfall) -> None:
        db.execute(
            "INSERT OR REPLACE INTO settings VALUES (?, ?)",
            (_SHORTFALL + shortfall.model, json.dumps(as_dict(shortfall))),
        )

    @staticmethod
    def _end_shortfall(db: sqlite3.Connection, model: str) -> None:
        db.execute("DELETE FROM settings WHERE name = ?", (_SHORTFALL + model,))

    @staticmethod
    def _put_records(db: sqlite3.Connection, records: Iterable[Record]) -> None:
        db.executemany(
            "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)",
            [(r.dev, r.inode, r.digest, r.size_bytes, r.mtime_ns, r.ctime_ns, r.verified_at) for r in records],
        )
        db.execute(
            "DELETE FROM records WHERE (dev, inode) IN"
            " (SELECT dev, inode FROM records ORDER BY verified_at DESC, dev, inode LIMIT -1 OFFSET ?)",
            (MAX_RECORDS,),
        )

    @staticmethod
    def _note(db: sqlite3.Connection, digests: Mapping[Digest, str], what: HistoryWord, now: Seconds) -> None:
        db.executemany(
            "INSERT INTO history (at, digest, what, how) VALUES (?, ?, ?, ?)",
            [(now, digest, what, how) for digest, how in digests.items()],
        )
        db.execute("DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?", (MAX_HISTORY,))

    # --- the connection ---

    def _connect(self) -> sqlite3.Connection:
        if not os.access(self._path, os.F_OK):
            raise StorageError(f"no {self._path}", advice="is the disk mounted? else make the store with `kensho init`")
        errors: list[sqlite3.Error] = []
        for mode in ("rw", "ro", "ro&immutable=1"):  # on a read-only disk nobody can make the WAL's shared memory
            db = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                db.execute("SELECT 1 FROM settings").fetchone()  # opens the file: what cannot be used is told now
            except sqlite3.Error as error:
                db.close()
                errors.append(error)
                continue
            self.is_read_only = mode != "rw" or not os.access(self._path, os.W_OK)
            return db
        raise errors[0]

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            yield self._db

    @contextmanager
    def _writing(self, *, is_durable: bool = True) -> Iterator[sqlite3.Connection]:
        if self.is_read_only:
            raise StorageError(f"{self._path} cannot be written", advice="use a store that this user may write")
        with self._lock, self._errors():
            # FULL: a commit that was reported must survive a power cut, else an update could silently be undone.
            # NORMAL never syncs the log by itself; the next FULL commit makes those before it durable too.
            self._db.execute(f"PRAGMA synchronous={'FULL' if is_durable else 'NORMAL'}")
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise _storage_error(self._path, error) from error


def _storage_error(path: Path, error: sqlite3.Error) -> StorageError:
    word = getattr(error, "sqlite_errorname", "")
    advice = "run `kensho doctor`"
    if "READONLY" in word or "CANTOPEN" in word:
        advice = "is the disk mounted, and may this user write there? else choose another store"
    elif "BUSY" in word:
        advice = "another process is writing to the store: try again"
    elif "FULL" in word:
        advice = "free space and run it again"
    elif "CORRUPT" in word or "NOTADB" in word:
        advice = "move the file away, run `kensho init` and `kensho pull`: verified blobs are found again, not fetched"
    return StorageError(f"the store's database {path} cannot be used: {error}", advice=advice)
