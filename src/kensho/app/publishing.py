"""What is made for a release beside the publisher's own files: the tables of its tokenizer (docs/tokenizer.md)."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kensho.base.clock import Seconds, SystemClock
from kensho.base.errors import ModelError
from kensho.base.structs import Struct
from kensho.runtime.tokenizer.tables import FILE_NAME


class MadeFiles(Struct):
    """For `delivery.publisher.publish`."""

    files: Mapping[str, Path | None]
    """Path in the model -> file to read, None for one that could not be made."""
    size_bytes: int = 0
    seconds: Seconds = 0.0
    reason: str = ""
    """Why there are no tables; empty if there are, or the model has no tokenizer."""


@contextmanager
def made_files(source: Path) -> Iterator[MadeFiles]:
    """The files, there until the end of the block. Takes seconds for 262k tokens; raises nothing of its own."""
    if not (source / "tokenizer.json").is_file():
        yield MadeFiles({FILE_NAME: None})
        return
    from kensho.runtime.tokenizer.build_folder import build_folder

    clock = SystemClock()
    start_s = clock.monotonic_s()
    try:
        data = build_folder(source)
    except ModelError as error:  # the release is no worse without; a tokenizer that is broken shows when it is used
        yield MadeFiles({FILE_NAME: None}, reason=getattr(error, "reason", error.message))
        return
    seconds = clock.monotonic_s() - start_s
    with tempfile.TemporaryDirectory(prefix="kensho-publish-") as folder:
        path = Path(folder) / FILE_NAME
        path.write_bytes(data)
        yield MadeFiles({FILE_NAME: path}, len(data), seconds)
