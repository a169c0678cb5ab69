"""Where tables lie and whether they fit: in the model folder (shipped), or in a folder of this machine (made here).

Tables fit a model if they were made from files with the digests of its files. The digests are those of the manifest,
verified when the model was installed: no file is hashed here, and tokenizer.json is not even opened.
"""

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from kensho.base.ids import Digest, digest_of
from kensho.base.structs import Struct
from kensho.runtime.text.text_facts import read_bounded
from kensho.runtime.text.tokenizer.refuse import TablesRefused
from kensho.runtime.text.tokenizer.tables import FILE_NAME, FORMAT, Tables

SOURCES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "config.json")
"""All that a codec depends on."""
MAX_SOURCE_BYTES = 256 << 20
"""Gemma 3's tokenizer.json has 33 MB."""
MAX_MADE_HERE = 16
"""Files of tables kept in the folder of this machine (guess): more models than run on one."""
_MAX_REASON_BYTES = 1000


def sources_of(digests: Mapping[str, Digest]) -> dict[str, Digest]:
    """The digests of the files that tables are made from; those that there are."""
    return {name: digests[name] for name in SOURCES if name in digests}


def source_digests(folder: Path) -> dict[str, Digest]:
    """The same of a folder whose files nobody has verified: hashes them. Raises ModelError."""
    read = {name: read_bounded(folder / name, MAX_SOURCE_BYTES) for name in SOURCES}
    return {name: digest_of(data) for name, data in read.items() if data is not None}


def made_name(digests: Mapping[str, Digest]) -> str:
    """What tables of these sources are called in the folder of this machine."""
    content = json.dumps([FORMAT, sources_of(digests)], sort_keys=True)
    return f"tokenizer-{digest_of(content.encode())[:32]}"


class Place(Struct):
    path: Path
    made_here: Path | None
    """The folder of this machine that it is in; None for a shipped file."""


def places(folder: Path, digests: Mapping[str, Digest], made_here: Path | None) -> list[Place]:
    """Where tables for these files may be, best first."""
    found = [Place(folder / FILE_NAME, None)] if FILE_NAME in digests else []
    if made_here is not None and "tokenizer.json" in digests:
        found.append(Place(made_here / f"{made_name(digests)}.tables", made_here))
    return found


def open_tables(place: Place, digests: Mapping[str, Digest]) -> Tables:
    """Raises TablesRefused; FileNotFoundError, OSError."""
    if place.made_here is not None:
        _check_owner(place.path, place.made_here)
    tables = Tables.open(place.path)
    if "tokenizer.json" not in digests or tables.meta.get("sources") != sources_of(digests):
        raise TablesRefused("they were made for other files")
    return tables


def drop_tables(place: Place) -> None:
    """Remove a damaged file that this machine made, so that it is made anew; a shipped one is the store's to repair."""
    if place.made_here is not None:
        with contextlib.suppress(OSError):
            place.path.unlink()


def reason_against(digests: Mapping[str, Digest], made_here: Path) -> str:
    """Why no tables were made of these sources, if that was tried; empty if not."""
    try:
        with (made_here / f"{made_name(digests)}.none").open("rb") as file:
            return file.read(_MAX_REASON_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def count_tries(digests: Mapping[str, Digest], made_here: Path) -> int:
    """How many builds for these sources came to no end: the process was killed, or the disk refused."""
    try:
        return (made_here / f"{made_name(digests)}.tries").stat().st_size
    except OSError:
        return 0


def note_try(digests: Mapping[str, Digest], made_here: Path) -> None:
    """Before a build: one byte more. Raises OSError."""
    with (made_here / f"{made_name(digests)}.tries").open("ab") as file:
        file.write(b".")


def forget_tries(digests: Mapping[str, Digest], made_here: Path) -> None:
    """After a build that came to an end, or was ended by whoever wanted it."""
    with contextlib.suppress(OSError):
        (made_here / f"{made_name(digests)}.tries").unlink()


def keep_tables(data: bytes, digests: Mapping[str, Digest], made_here: Path) -> None:
    """Put tables into the folder of this machine: whole or not at all, whoever else does it. Raises OSError."""
    _put(made_here, f"{made_name(digests)}.tables", data)
    _drop_oldest(made_here)


def keep_reason(reason: str, digests: Mapping[str, Digest], made_here: Path) -> None:
    """Remember that no tables can be made of these sources. Raises OSError."""
    _put(made_here, f"{made_name(digests)}.none", reason.encode()[:_MAX_REASON_BYTES])


def _check_owner(path: Path, folder: Path) -> None:
    """A CRC says that tables are whole, not who made them: another user's are never used (as graphs are not)."""
    found = path.lstat()
    owners = {0, os.geteuid(), folder.stat().st_uid}
    if found.st_uid not in owners or (found.st_mode & stat.S_IWOTH and not stat.S_ISLNK(found.st_mode)):
        raise TablesRefused("another user may have written them")


def _put(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{name}.{os.getpid()}"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(folder / name)
    finally:
        new.unlink(missing_ok=True)


def _drop_oldest(folder: Path) -> None:
    with contextlib.suppress(OSError):
        found = sorted(folder.glob("tokenizer-*.tables"), key=lambda path: path.stat().st_mtime)
        for path in found[:-MAX_MADE_HERE]:
            path.unlink(missing_ok=True)
