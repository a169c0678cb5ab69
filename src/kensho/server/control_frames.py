"""What a thin client and the daemon say to each other on the store's socket. Pure, and imports nothing: it is on the
start path of every command.

A frame is one byte of kind, four of length (little-endian), then the payload. A connection carries one command:

    client -> daemon   R request        once, first
                       C cancel         Ctrl-C: stop the command, and say so; closing the connection stops it too
    daemon -> client   A accepted       the command is this daemon's, and has begun
                       N not mine       nothing was done: go on by yourself; the payload says why
                       O output         bytes for stdout
                       E error output   bytes for stderr
                       X exit           one byte, the exit code; the last frame

The first frame of the daemon comes at once and is A or N, so that a client never waits for a daemon that hangs. A
request is a list of texts joined by NUL, which no argument can contain: `key=value` lines about the client, an empty
text, then the arguments. Unknown keys are ignored.
"""

REQUEST, CANCEL = b"R", b"C"
ACCEPTED, NOT_MINE, OUT, ERR, EXIT = b"A", b"N", b"O", b"E", b"X"

HEADER_BYTES = 5
MAX_REQUEST_BYTES = 4 << 20
"""Linux takes 2 MiB of arguments and environment together (ARG_MAX with the usual stack limit)."""
MAX_OUTPUT_BYTES = 64 << 10
"""Of one frame of output; longer output is several frames."""

SOCKET_NAME = "daemon.sock"
MAX_ADDRESS_BYTES = 107
"""`sun_path` without its NUL (unix(7))."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """One frame, ready to send."""
    return kind + len(payload).to_bytes(4, "little") + payload


def header(data: bytes | bytearray) -> tuple[bytes, int]:
    """Kind and length from the first HEADER_BYTES."""
    return bytes(data[:1]), int.from_bytes(data[1:HEADER_BYTES], "little")


def encode_request(about: dict[str, str], argv: list[str]) -> bytes:
    """The payload of a request. Bytes that are not UTF-8 survive, as they do in `sys.argv`."""
    facts = [f"{key}={value}" for key, value in about.items()]
    return "\0".join([*facts, "", *argv]).encode("utf-8", "surrogateescape")


def decode_request(payload: bytes) -> tuple[dict[str, str], list[str]]:
    """What the client said of itself, and its arguments. ValueError for anything that is no request."""
    texts = payload.decode("utf-8", "surrogateescape").split("\0")
    end = texts.index("")
    about = [text.partition("=") for text in texts[:end]]
    if not all(sign for _, sign, _ in about):
        raise ValueError("a fact without a value")
    return {key: value for key, _, value in about}, texts[end + 1 :]
