"""One entry of the graph cache on the disk: the stamps of its files, whose they are, and its record."""

import contextlib
import stat
from collections.abc import Set
from pathlib import Path

from kensho.base.errors import Damaged
from kensho.runtime.cache.graph_record import (
    MAX_RECORD_BYTES,
    RECORD_FILE,
    GraphRecord,
    Stamp,
    dump_record,
    parse_record,
    stamp_of,
)
from kensho.runtime.cache.header import GRAPH_FILE, HEADER_FILE, WEIGHTS_FILE
from kensho.runtime.cache.temp_folder import Token
from kensho.runtime.model.plain_file import read_plain

FILES = (HEADER_FILE, GRAPH_FILE, WEIGHTS_FILE)
_MAX_BOOT_BYTES = 64


def read_boot_id(root: Path = Path("/")) -> str:
    """Names this start of the machine. Empty where the kernel does not say: nothing is vouched for then."""
    try:
        with (root / "proc/sys/kernel/random/boot_id").open(encoding="ascii", errors="replace") as file:
            return file.read(_MAX_BOOT_BYTES).strip()
    except OSError:
        return ""


def read_stamps(folder: Path, owners: Set[int]) -> dict[str, Stamp]:
    """What the kernel says of the entry's files now. Raises Damaged for anything but plain files of `owners`."""
    stamps = {}
    for name in FILES:
        try:
            found = (folder / name).lstat()
        except OSError as error:
            raise damaged(f"{name} of the compiled graph is missing") from error
        if not stat.S_ISREG(found.st_mode):
            raise damaged(f"{name} of the compiled graph is no plain file")
        # Hashes say that a graph is whole, not who made it: another user's is never executed.
        if found.st_uid not in owners or found.st_mode & stat.S_IWOTH:
            raise damaged(f"{name} of the compiled graph may be written by another user")
        stamps[name] = stamp_of(found)
    return stamps


def read_record(folder: Path) -> GraphRecord | None:
    """What is recorded of the entry, None where nothing sound is."""
    try:
        return parse_record(read_plain(folder / RECORD_FILE, MAX_RECORD_BYTES))
    except OSError:
        return None


def write_record(folder: Path, record: GraphRecord, token: Token) -> None:
    """On a read-only disk the entry works all the same, and is hashed by each process that uses it."""
    new = folder / f"{RECORD_FILE}.{token()}"
    with contextlib.suppress(OSError):
        new.write_bytes(dump_record(record))
        new.replace(folder / RECORD_FILE)


def damaged(message: str) -> Damaged:
    """The refusal of an entry that is dropped and made anew."""
    return Damaged(message, advice="the entry is dropped and the model compiled again", reason="damaged")
