"""Read a small file in a folder that others may write to, without being made to wait or to look elsewhere.

A pipe in the place of a file would make an ordinary `open` wait for ever; a link would have us read any other file.
"""

import os
from pathlib import Path


def read_plain(path: Path, max_bytes: int) -> bytes:
    """At most `max_bytes` from the beginning. Raises OSError; a pipe or an empty file gives no bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(descriptor, max_bytes)
    finally:
        os.close(descriptor)
