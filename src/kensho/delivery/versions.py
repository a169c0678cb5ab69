"""`versions/<model>/<version>/<real names>`: what engines open. Hard links to blobs; copies where links are refused.

A version appears as a whole folder, by one rename. In a folder that is there already (a repair, an optional file that
came late) a name is replaced by a rename of its own, so that who has the old file open keeps reading the old bytes.
The caller holds the store's lock. Everything may raise StorageError; what was visible before stays visible.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kensho.base.errors import Damaged
from kensho.base.ids import Digest
from kensho.delivery.disk import NO_LINKS, Disk, storage_errors
from kensho.delivery.installed import Record
from kensho.delivery.planted import make_way_for_file, make_way_for_folder, remove_inside, remove_tree

Known = Mapping[tuple[int, int], Record]
"""Records by device and inode."""


class Versions:
    """The version folders of the store in `root`."""

    def __init__(self, root: Path, *, disk: Disk) -> None:
        self._root = root
        self._disk = disk

    def path(self, model: str, version: str) -> Path:
        return self._root / "versions" / model / version

    def publish(
        self, model: str, version: str, names: Mapping[str, Digest], records: Sequence[Record], *, now: float
    ) -> list[Record]:
        """The version has every name of `names`, with the bytes of its blob.

        `records` vouch for the blobs, and for copies that are there already: such a one stays. Returned are the records
        that hold after the linking (which changes ctime), for blobs and copies; a blob that was touched meanwhile has
        none, and will be hashed by the next check.
        """
        target = self.path(model, version)
        known = {(record.dev, record.inode): record for record in records}
        made: list[Record] = []
        with storage_errors("make a version visible", target):
            make_way_for_folder(self._disk, target.parent)
            make_way_for_folder(self._disk, target)
            if self._disk.lstat(target) is None:
                self._build(target, names, made, now)
            else:
                for folder in _folders(target, names):
                    make_way_for_folder(self._disk, folder)
                for name, digest in names.items():
                    self._replace(digest, target / name, known, made, now)
            self._sync_names(target, names)
            return made + self._still_vouched(set(names.values()), known)

    def has_links(self) -> bool:
        """Whether this file system makes hard links. Where not, every file lies there twice."""
        probe = self._root / "staging" / "probe.new"
        link = self._root / "staging" / "probe.link"
        with storage_errors("try a hard link", self._root):
            remove_tree(self._disk, link)
            remove_tree(self._disk, probe)
            self._disk.close(self._disk.open_write(probe))
            try:
                self._disk.link(probe, link)
            except FileExistsError:
                return True  # another process tries it too
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                return False
            finally:
                self._disk.unlink(probe)
            self._disk.unlink(link)
        return True

    def remove(self, path: Path) -> int:
        """Removes a file or folder of the store and all in it, never following a link. Returns the bytes freed."""
        with storage_errors("remove old files", path):
            return remove_inside(self._disk, self._root, path)

    def _build(self, target: Path, names: Mapping[str, Digest], made: list[Record], now: float) -> None:
        building = self._root / "staging" / "version.new"
        remove_tree(self._disk, building)  # left by a killed run
        folders = _folders(building, names)
        for folder in folders:
            self._disk.make_folder(folder)
        for name, digest in names.items():
            self._link(digest, building / name, made, now)
        for folder in folders:
            self._disk.fsync_folder(folder)
        self._disk.make_folder(target.parent)
        self._disk.rename(building, target)

    def _replace(self, digest: Digest, name: Path, known: Known, made: list[Record], now: float) -> None:
        blob, found = self._disk.lstat(self._blob(digest)), self._disk.lstat(name)
        if blob and found and (blob.st_dev, blob.st_ino) == (found.st_dev, found.st_ino):
            return
        record = known.get((found.st_dev, found.st_ino)) if found else None
        if record and found and record.vouches_for(digest, found, now=now):
            made.append(record)  # a copy, and a right one
            return
        new = self._root / "staging" / "name.new"
        remove_tree(self._disk, new)  # left by a killed run
        copied: list[Record] = []
        self._link(digest, new, copied, now)
        self._disk.make_folder(name.parent)
        make_way_for_file(self._disk, name)
        self._disk.rename(new, name)
        after = self._disk.lstat(name)
        made.extend(filter(None, (record.relinked(after) for record in copied if after)))

    def _sync_names(self, target: Path, names: Mapping[str, Digest]) -> None:
        """Every name that leads to the version's bytes is durable. Also those that were there already: their maker may
        have been killed before it could sync them."""
        for folder in _folders(target, names):
            self._disk.fsync_folder(folder)
        self._disk.fsync_folder(target.parent)
        self._disk.fsync_folder(target.parent.parent)
        self._disk.fsync_folder(self._root / "blobs")

    def _link(self, digest: Digest, name: Path, made: list[Record], now: float) -> None:
        try:
            self._disk.link(self._blob(digest), name)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            made.append(self._copy(digest, name, now))

    def _copy(self, digest: Digest, name: Path, now: float) -> Record:
        from kensho.delivery.hashing import BLOCK_BYTES, hash_file

        source = self._disk.open_read(self._blob(digest))
        try:
            size = self._disk.fstat(source).st_size
            target = self._disk.open_write(name)
            try:
                buffer = memoryview(bytearray(BLOCK_BYTES))
                for offset in range(0, size, BLOCK_BYTES):
                    count = self._disk.read_into(source, buffer, offset)
                    self._disk.write(target, buffer[:count], offset)
                self._disk.fsync(target)
                if hash_file(self._disk, target, size) != digest:
                    raise Damaged(f"blob {digest[:12]} is damaged", advice="run `kensho repair`", digest=digest)
                self._disk.set_read_only(target)
                return Record.of(digest, self._disk.fstat(target), now)
            finally:
                self._disk.close(target)
        finally:
            self._disk.close(source)

    def _still_vouched(self, digests: set[Digest], known: Known) -> list[Record]:
        still: list[Record] = []
        for digest in sorted(digests):
            found = self._disk.lstat(self._blob(digest))
            record = known.get((found.st_dev, found.st_ino)) if found else None
            after = record.relinked(found) if record and found else None
            if after and after.digest == digest:
                still.append(after)
        return still

    def _blob(self, digest: Digest) -> Path:
        return self._root / "blobs" / digest


def _folders(root: Path, names: Mapping[str, Digest]) -> list[Path]:
    """The folder and those inside it that the names need, outer ones first."""
    return sorted({root} | {folder for name in names for folder in (root / name).parents if root in folder.parents})
