"""The store: one folder per machine that holds verified models, shared by several processes and applications.

    format       the layout's version; a newer one is refused and left untouched
    trusted/     TUF metadata last accepted (trust)
    blobs/       <sha256>: whole verified files and documents, read-only
    versions/    <model>/<version>/<real names>: hard links to blobs, so that engines open plain files
    staging/     what is being fetched or built; anything in it may be thrown away
    graphs/      compiled graphs (the runtime's)
    logs/        (telemetry's)
    state.db     what is installed, current and verified (`state`)
    lock         held by the one writer; the kernel releases it, so it is never stale

Rules: nothing has its final name before its bytes are hashed and synced; nothing is written in place under a name that
an engine may have open; a version appears as a whole folder, by one rename; it becomes current by one commit in
state.db. One writer at a time, readers are free. Errors are StorageError with advice; what was there stays as it was.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from kensho.base.errors import ConfigError, Damaged, NotInstalled, StorageError, StoreBusy, StoreMissing
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import Struct
from kensho.delivery.disk import Disk, storage_errors
from kensho.delivery.durable import make_folders, read_document, write_document
from kensho.delivery.installed import InstalledFile, ModelRow, Release
from kensho.delivery.migrations import FORMAT, migrate, read_format
from kensho.delivery.planted import is_regular, make_way_for_file
from kensho.delivery.state import State
from kensho.delivery.versions import Versions

if TYPE_CHECKING:
    from kensho.delivery.staging import Staging

FOLDERS = ("trusted", "blobs", "versions", "staging", "graphs", "logs")
DATABASE_ENDS = ("", "-wal", "-shm", "-journal")
DATABASES = tuple(name + end for name in ("state.db", ".state.db.partial") for end in DATABASE_ENDS)
FILES = ("format", ".format.partial", "lock", *DATABASES)


class InstalledModel(Struct):
    """The current version of a model. `folder` holds its files by their real names."""

    model: str
    version: str
    previous: str | None
    pinned: str | None
    release: int
    manifest: Digest
    installed_at: float
    folder: Path
    files: tuple[InstalledFile, ...]
    is_degraded: bool
    uses: int
    used_at: float | None


class Store:
    """An opened store. Make it with `create` or `open`; `close` when done. Methods that change it need `writing`."""

    def __init__(self, root: Path, state: State, *, disk: Disk) -> None:
        self.root = root
        self.disk = disk
        self.state = state
        self.versions = Versions(root, disk=disk)

    @classmethod
    def create(cls, root: Path, *, disk: Disk) -> Self:
        """The store in `root`, made if it is not there yet. Can be killed and run again. A store whose database was
        lost gets an empty one; a pull then finds its blobs, hashes them, and fetches only what is not there.

        ConfigError if the folder has other things in it: a store must not be mixed with anything.
        """
        root = root.absolute()
        with storage_errors("make a store", root):
            make_folders(disk, root)
            is_new = read_format(root, disk) is None  # a newer one is refused before anything is made
            if is_new or disk.lstat(root / "state.db") is None:
                foreign = set(disk.list_folder(root)) - {*FOLDERS, *FILES, "lost+found"}
                if is_new and foreign:
                    raise ConfigError(
                        f"{root} is not empty and is no store (it has {sorted(foreign)[0]!r})",
                        advice="name an empty or a new folder",
                    )
                fd = disk.lock(root / "lock")  # two programs that start for the first time
                try:
                    cls._build(root, disk)
                finally:
                    disk.close(fd)
        return cls.open(root, disk=disk)

    @classmethod
    def open(cls, root: Path, *, disk: Disk) -> Self:
        """The store in `root`; read-only (`is_read_only`) where this user may not write. About 1 ms.

        A store of an older format is brought to this one first (`migrations`), a newer one is refused and untouched.
        """
        root = root.absolute()
        if read_format(root, disk) is None:
            raise store_missing(root)
        migrate(root, disk)
        return cls(root, State(root / "state.db"), disk=disk)

    def close(self) -> None:
        """Idempotent."""
        self.state.close()

    @cached_property
    def staging(self) -> "Staging":
        """The partial files, for who changes the store."""
        from kensho.delivery.staging import Staging

        return Staging(self.root / "staging", disk=self.disk)

    @property
    def trusted(self) -> Path:
        """The folder of trusted metadata."""
        return self.root / "trusted"

    @property
    def is_read_only(self) -> bool:
        return self.state.is_read_only

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Exclusive right to change the store. StoreBusy if another process has it; not reentrant."""
        if self.is_read_only:
            raise StorageError(f"the store in {self.root} is read-only", advice="use a store that this user may write")
        with storage_errors("lock the store", self.root):
            if self.disk.lstat(self.root / "format") is None:  # else a lock and more would be made in a mount point
                raise store_missing(self.root)
            try:
                fd = self.disk.lock(self.root / "lock")
            except BlockingIOError as error:
                raise StoreBusy(
                    f"another process is changing the store in {self.root}", advice="try again when it has finished"
                ) from error
        try:
            yield
        finally:
            self.disk.close(fd)

    def free_bytes(self) -> int:
        with storage_errors("measure free space", self.root):
            return self.disk.free_bytes(self.root)

    # --- reading ---

    def installed(self) -> list[InstalledModel]:
        """Current version of every model, by name."""
        releases = {(release.model, release.version): release for release in self.state.releases()}
        rows = [(row, releases.get((row.model, row.current))) for row in self.state.models()]
        return [self._installed(row, release) for row, release in rows if release]

    def model(self, model: str) -> InstalledModel:
        """NotInstalled if there is none of that name."""
        found = {installed.model: installed for installed in self.installed()}
        if model not in found:
            known = ", ".join(sorted(found)) or "none"
            raise NotInstalled(f"model {model!r} is not installed (installed: {known})", advice="run `kensho pull`")
        return found[model]

    def release(self, model: str, version: str) -> Release:
        """An installed version, current or not. NotInstalled if it is not here."""
        releases = self.state.releases(model)
        for release in releases:
            if release.version == version:
                return release
        known = ", ".join(release.version for release in releases) or "none"
        raise NotInstalled(f"{model} {version} is not in the store (there: {known})", advice="run `kensho pull`")

    def blob_path(self, digest: Digest) -> Path:
        return self.root / "blobs" / digest

    def document(self, digest: Digest, *, max_bytes: int) -> bytes:
        """A manifest or chunk list of an installed release. Damaged if it is not what was accepted."""
        with storage_errors("read a document", self.root / "blobs"):
            path = self.blob_path(digest)
            data = read_document(self.disk, path, max_bytes=max_bytes) if is_regular(self.disk, path) else None
        if data is None or digest_of(data) != digest:
            raise Damaged(
                f"document {digest[:12]} of the store is damaged", advice="run `kensho repair`", digest=digest
            )
        return data

    # --- changing: the caller is inside `writing` ---

    def put_document(self, data: bytes) -> Digest:
        """Keep a manifest or chunk list under its digest."""
        digest = digest_of(data)
        with storage_errors("write a document", self.root / "blobs"):
            make_way_for_file(self.disk, self.blob_path(digest))
            if read_document(self.disk, self.blob_path(digest), max_bytes=1 << 40) != data:
                write_document(self.disk, self.blob_path(digest), data)
        return digest

    # --- below ---

    @staticmethod
    def _build(root: Path, disk: Disk) -> None:
        for name in FOLDERS:
            disk.make_folder(root / name)
        database = root / "state.db"
        if disk.lstat(database) is None:
            partial = root / ".state.db.partial"
            for end in DATABASE_ENDS:
                disk.unlink(partial.with_name(partial.name + end))
            State.create(partial)
            disk.rename(partial, database)
        write_document(disk, root / "format", b"%d\n" % FORMAT)  # last: only now is it a store

    def _installed(self, row: ModelRow, release: Release) -> InstalledModel:
        return InstalledModel(
            model=row.model,
            version=row.current,
            previous=row.previous,
            pinned=row.pinned,
            release=release.release,
            manifest=release.manifest,
            installed_at=release.installed_at,
            folder=self.versions.path(row.model, row.current),
            files=release.files,
            is_degraded=release.is_degraded,
            uses=row.uses,
            used_at=row.used_at,
        )


def is_store(root: Path) -> bool:
    """Whether there is a store in `root` now: its disk may not be mounted. One stat."""
    return (root / "format").exists()


def store_missing(root: Path) -> StoreMissing:
    return StoreMissing(f"no store in {root}", advice="is the disk mounted? else make it with `kensho init`")
