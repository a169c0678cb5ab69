"""Names that must not be swapped, and the rules for names that come from outside.

A `Digest` is always 64 lower-case hexadecimal digits (SHA-256): it is used as a file name, so nothing else may
pass (CVE-2026-7020, CVE-2024-37032: digests used as paths). Model names, versions and file paths inside a model
are checked here once, at the edge, and trusted after that.
"""

import hashlib
import re
import unicodedata
from typing import NewType

from kensho.base.errors import TrustError, UsageError

Digest = NewType("Digest", str)
"""SHA-256 as 64 lower-case hexadecimal digits."""

GraphKey = NewType("GraphKey", str)
"""Content key of a compiled graph: 64 lower-case hexadecimal digits."""

MAX_PATH_BYTES = 255
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?\Z")


def parse_digest(text: object) -> Digest:
    """The text as a Digest. Raises TrustError unless it is exactly 64 lower-case hex digits."""
    if not isinstance(text, str) or not _DIGEST.match(text):
        raise TrustError(
            f"not a SHA-256 digest: {str(text)[:80]!r}", advice="the metadata is malformed; tell its publisher"
        )
    return Digest(text)


def digest_of(data: bytes | memoryview) -> Digest:
    """SHA-256 of the bytes. About 0.5 ms per MiB; releases the GIL for more than 2 KiB."""
    return Digest(hashlib.sha256(data).hexdigest())


def check_name(name: str, what: str) -> str:
    """`name` if it can be a model name or a version: 1-64 of letters, digits, `.`, `_`, `-`, not a device name."""
    if not isinstance(name, str) or not _NAME.match(name) or _DEVICE.match(name) or name.endswith("."):
        raise UsageError(
            f"{what} {str(name)[:80]!r} cannot be used",
            advice="use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
        )
    return name


def check_file_path(path: str) -> str:
    """`path` if it is a safe relative path for a model's file on every system. Raises TrustError.

    Rules (list item 14 of the delivery design): parts joined by `/`; no empty part, `.`, `..`, NUL, control
    character, backslash, colon, device name, trailing dot or space; NFC; at most 255 bytes.
    """
    bad = (
        not path
        or len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES
        or any(ord(c) < 32 or c in '\\:*?"<>|\x7f' or 0xD800 <= ord(c) < 0xE000 for c in path)
        or unicodedata.normalize("NFC", path) != path
        or any(p in ("", ".", "..") or p[-1] in ". " or _DEVICE.match(p) for p in path.split("/"))
    )
    if bad:
        raise TrustError(
            f"file path {path[:80]!r} is not allowed in a model", advice="rename the file and publish again"
        )
    return path


def check_file_paths(paths: list[str]) -> None:
    """All paths safe, and no two that one file system could take for the same (case, Unicode form), or nest."""
    seen = {check_file_path(path).casefold() for path in paths}
    nested = {"/".join(p.split("/")[:i]) for p in seen for i in range(1, p.count("/") + 1)}
    if len(seen) != len(paths) or seen & nested:
        raise TrustError("two file paths of the model clash", advice="rename one of the files and publish again")
