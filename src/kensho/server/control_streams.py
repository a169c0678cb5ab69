"""What a command of the daemon's is given: the client's request, and streams that end at the client.

The streams are what `print` wants. Writing never blocks: what a client does not read is `control`'s to bound.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from kensho.base.structs import Struct
from kensho.server.control_frames import MAX_OUTPUT_BYTES


class NotMine(Exception):  # an answer, not an error
    """This daemon does not run that command; the text says why, for whoever debugs a client."""


class Request(Struct):
    """A command as a client sent it."""

    argv: Sequence[str]
    about: Mapping[str, str]
    """What the client said of itself: see `cli.client`."""
    is_too_many: bool = False
    """As many commands run as may: what takes time is refused."""


class Stream:
    """A text stream (as `print` wants one) that ends at the client. Encodes as the client's own would."""

    def __init__(self, send: Callable[[bytes, bytes], None], kind: bytes, codec: str, *, is_terminal: bool) -> None:
        """`codec` is "encoding/errors"; one that does not exist here is taken for UTF-8."""
        self._send = send
        self._kind = kind
        encoding, _, errors = codec.partition("/")
        try:
            "".encode(encoding, errors or "strict")
        except LookupError:
            encoding, errors = "utf-8", "backslashreplace"
        self._encoding, self._errors = encoding, errors or "strict"
        self._is_terminal = is_terminal
        self._parts: list[str] = []

    def write(self, text: str) -> int:
        self._parts.append(text)
        return len(text)

    def flush(self) -> None:
        text = "".join(self._parts)
        self._parts.clear()  # also when it cannot be said in the client's encoding
        data = text.encode(self._encoding, self._errors)
        for start in range(0, len(data), MAX_OUTPUT_BYTES):
            self._send(self._kind, data[start : start + MAX_OUTPUT_BYTES])

    def isatty(self) -> bool:
        return self._is_terminal


class Streams(Struct, frozen=False):
    """Where the command's output goes."""

    out: Stream
    err: Stream
    ended_by: Literal["", "client", "daemon"] = ""
    """Who cancelled the command, if anybody has."""
