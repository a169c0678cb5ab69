"""From an older store format to this one, atomically: after a kill at any moment it is a whole store of one format.

MIGRATIONS[n] takes a store from format n to n + 1. The one commit is the rename of the file `format`; what a migration
does before it must keep three rules:

1. It only adds. Until the commit the store is read, and used, in the old format, also by processes of an older Kensho.
2. It can be run again from any point: a killed one is.
3. It syncs what it wrote before it returns.

What the new format does not need any more is for `gc` to remove, which runs in the new format only. There is one
format so far, so the table is empty.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from kensho.base.errors import StorageError, StoreBusy, TrustError
from kensho.delivery.disk import Disk, storage_errors
from kensho.delivery.durable import read_document, write_document

FORMAT = 1
Migration = Callable[[Path, Disk], None]
MIGRATIONS: Mapping[int, Migration] = {}


def read_format(root: Path, disk: Disk) -> int | None:
    """The store's format; None if there is no store in `root`. StorageError if it is newer than FORMAT, or nonsense:
    it is left untouched."""
    try:
        with storage_errors("open the store", root):
            written = read_document(disk, root / "format", max_bytes=16)
    except TrustError:  # too long for a number
        written = b"?"
    if written is None:
        return None
    number = written.strip()
    if not number.isdigit() or not 1 <= int(number) <= FORMAT:
        raise StorageError(
            f"the store in {root} has format {number.decode(errors='replace')!r}; this Kensho reads {FORMAT}",
            advice="update Kensho, or use another store; nothing was changed",
        )
    return int(number)


def migrate(root: Path, disk: Disk) -> None:
    """The store has this Kensho's format. Costs one small read where it has already.

    StoreBusy if another process is changing the store, StorageError if this user may not write there.
    """
    if read_format(root, disk) == FORMAT:
        return
    with storage_errors("bring the store to a new format", root):
        try:
            fd = disk.lock(root / "lock")
        except BlockingIOError as error:
            raise StoreBusy(
                f"another process is changing the store in {root}, which needs a new format",
                advice="try again when it has finished",
            ) from error
        try:
            found = read_format(root, disk)  # again: another process may have done it meanwhile
            for number in range(found or FORMAT, FORMAT):
                MIGRATIONS[number](root, disk)
                write_document(disk, root / "format", b"%d\n" % (number + 1))
        finally:
            disk.close(fd)
