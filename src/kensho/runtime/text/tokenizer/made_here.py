"""The tables that this machine has made, looked after: what is there, and removing what nobody needs.

A name stands for what tables are made of (`files.made_name`). Beside `<name>.tables` lie what is remembered of builds
that failed (`.none`, `.tries`), the lock of the process that builds, and the drafts of one that was killed.
"""

import contextlib
import re
from collections.abc import Collection
from pathlib import Path

from kensho.base.structs import Struct
from kensho.runtime.cache.pins import FileLock

_NAME = re.compile(r"\.?(tokenizer-[0-9a-f]{32})\.")


class MadeTables(Struct):
    """One file of tables."""

    name: str
    size_bytes: int


def list_made(folder: Path) -> list[MadeTables]:
    """Every file of tables, by name. Raises no error."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.glob("tokenizer-*.tables")):
            with contextlib.suppress(OSError):  # removed a moment ago
                found.append(MadeTables(path.stem, path.stat().st_size))
    return found


def remove_made(folder: Path, kept: Collection[str]) -> None:
    """Remove the tables whose name is not in `kept`; of all, what is remembered of failures and what killed builders
    left. What is being built stays. A program that has removed tables open keeps them. Raises no error."""
    with contextlib.suppress(OSError):
        names = {found[1] for path in folder.iterdir() if (found := _NAME.match(path.name))}
        for name in names:
            _clean(folder, name, ("none", "tries") if name in kept else ("none", "tries", "tables"))


def _clean(folder: Path, name: str, ends: Collection[str]) -> None:
    lock = FileLock.on_file(folder / f"{name}.lock")  # the builder's
    if lock is None:
        return
    try:
        for path in (*(folder / f"{name}.{end}" for end in ends), *folder.glob(f".{name}.*")):
            path.unlink(missing_ok=True)
    finally:
        lock.close(remove=True)
