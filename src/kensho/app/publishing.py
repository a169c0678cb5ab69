"""What is made for a release beside the publisher's own files: the tables of its tokenizer (docs/tokenizer.md)."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kensho.base.clock import Seconds, SystemClock
from kensho.base.errors import ModelError
from kensho.base.structs import Struct
from kensho.runtime.text.tokenizer.files import source_digests
from kensho.runtime.text.tokenizer.refuse import TablesRefused
from kensho.runtime.text.tokenizer.tables import FILE_NAME, MAX_FILE_BYTES, Tables

__all__ = ["FILE_NAME", "MAX_FILE_BYTES", "MadeFiles", "made_files"]


class MadeFiles(Struct):
    """For `delivery.publisher.publish`."""

    files: Mapping[str, Path | None]
    """Path in the model -> file to read, None for one that could not be made."""
    size_bytes: int = 0
    seconds: Seconds = 0.0
    """What making them took; 0 for tables of an earlier release that still fit."""
    reason: str = ""
    """Why there are no tables; empty if there are, or the model has no tokenizer."""


@contextmanager
def made_files(source: Path, earlier: Callable[[], bytes | None] = lambda: None) -> Iterator[MadeFiles]:
    """The files, there until the end of the block. Takes seconds for 262k tokens; raises nothing of its own.

    `earlier` reads the tables of the release before. They are shipped again if they were made of the same files: that
    is no byte to download, whatever versions of Python and the library are here now.
    """
    if not (source / "tokenizer.json").is_file():
        yield MadeFiles({FILE_NAME: None})
        return
    clock = SystemClock()
    start_s = clock.monotonic_s()
    seconds = 0.0
    try:
        data = _that_fit(earlier(), source)
        if data is None:
            from kensho.runtime.text.tokenizer.build_folder import build_folder

            data = build_folder(source)
            seconds = clock.monotonic_s() - start_s
    except ModelError as error:  # the release is no worse without; a tokenizer that is broken shows when it is used
        yield MadeFiles({FILE_NAME: None}, reason=getattr(error, "reason", error.message))
        return
    with tempfile.TemporaryDirectory(prefix="kensho-publish-") as folder:
        path = Path(folder) / FILE_NAME
        path.write_bytes(data)
        yield MadeFiles({FILE_NAME: path}, len(data), seconds)


def _that_fit(data: bytes | None, source: Path) -> bytes | None:
    if data is None:
        return None
    try:
        made_of = Tables(memoryview(data), FILE_NAME).meta.get("sources")
    except TablesRefused:
        return None
    return data if made_of == source_digests(source) else None
