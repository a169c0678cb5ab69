"""The thin client: let the store's daemon run this command, and be its mouth.

    code = try_daemon(sys.argv[1:], os.environ)
    if code is None:
        ...                                      # no daemon, or not for it: the command runs in this process

The daemon runs the very same command with models that are warm already and sends back what it says, so the output is
the same with and without one. This module imports `sys` and built-in modules only (`_signal`, `_socket`, `posix`): it
lies between the start of the interpreter and the first token. The wire's format: `server.control_frames`.

Rules: (1) a daemon is never required: without one, and for what it says is not for it, the answer is None; (2) a daemon
that is there and says nothing is not worked around: an engine beside its engines would be past every queue; (3) only a
daemon of the same user, or of root's, is believed; (4) Ctrl-C stops the command, a second one the client.
"""

import _signal  # type: ignore[import-not-found]  # `signal` would import enum: 1 ms
import _socket
import posix
import sys

from kensho import __version__
from kensho.server.control_frames import (
    ACCEPTED,
    CANCEL,
    ERR,
    EXIT,
    HEADER_BYTES,
    MAX_ADDRESS_BYTES,
    MAX_OUTPUT_BYTES,
    OUT,
    REQUEST,
    SOCKET_NAME,
    encode_request,
    frame,
    header,
)

TYPE_CHECKING = False  # importing `typing` would cost more than the rest of this module
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SERVED = ("run", "status", "warm", "fault", "circuit", "level")
"""The commands that a daemon runs."""

ACCEPT_S = 2.0
"""A daemon that has not answered by then hangs. A healthy one takes under a millisecond."""
_QUEUE_S = (2).to_bytes(8, sys.byteorder) + bytes(8)
"""For a place among those whom it has not seen yet: the same, as a `struct timeval`."""
INTERRUPTED = 130
FAILURE = 1
_LOST = "the daemon ended in the middle of the command"
_LOST_ADVICE = "run the same command again; it works without a daemon"


def try_daemon(argv: "Sequence[str]", environ: "Mapping[str, str]") -> int | None:
    """The exit code of the command, run by the store's daemon and its output written to stdout and stderr.

    None, with nothing written: there is no daemon, or this command is not for it. `argv` is without the program's
    name; `environ` is read for KENSHO_STORE, KENSHO_CONFIG and the names that XDG's default store comes from.
    """
    try:
        given, store = store_of(argv, environ)
        if not store or sys.stdout is None or sys.stderr is None:
            return None
        try:
            connection = _connect(store)
            if connection is None:
                return None
            try:
                return _Talk(connection, is_json="--json" in argv).run(_request(argv, given, environ))
            finally:
                connection.close()
        except _Unheard:
            return _tell_unheard(store, argv)
    except KeyboardInterrupt:
        return INTERRUPTED


class _Unheard(Exception):
    """Somebody listens there, and has not said a word."""


class _Talk:
    """One command's connection."""

    def __init__(self, connection: _socket.socket, *, is_json: bool) -> None:
        self._connection = connection
        self._is_json = is_json
        self._received = bytearray()
        self._has_spoken = False
        self._is_asked = False
        self._is_cancelled = False

    def run(self, request: bytes) -> int | None:
        # A handler that does not raise: KeyboardInterrupt between two bytecodes could lose what was just received.
        handles = _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler
        if handles:
            _signal.signal(_signal.SIGINT, self._interrupt)
        try:
            self._connection.settimeout(ACCEPT_S)
            self._connection.sendall(frame(REQUEST, request))
            self._is_asked = True
            if self._is_cancelled:
                self._connection.sendall(frame(CANCEL))
            return self._relay()
        except (OSError, ValueError):
            return self._lost()
        finally:
            if handles:
                _signal.signal(_signal.SIGINT, _signal.default_int_handler)

    def _interrupt(self, signal: int, at: object) -> None:
        """Ctrl-C: the command is stopped by the daemon, which says so. A second one does not wait for that."""
        if self._is_cancelled:
            raise KeyboardInterrupt
        self._is_cancelled = True
        if self._is_asked:
            self._connection.sendall(frame(CANCEL))

    def _relay(self) -> int | None:
        if self._next()[0] != ACCEPTED:
            return None
        self._connection.settimeout(None)
        while True:
            kind, payload = self._next()
            if kind == EXIT and len(payload) == 1:
                return payload[0]
            if kind not in (OUT, ERR):
                raise ValueError("not a frame of the daemon's")
            self._has_spoken = True
            if not _write(payload, is_error=kind == ERR):
                return FAILURE

    def _next(self) -> tuple[bytes, bytes]:
        received = self._received
        while True:
            if len(received) >= HEADER_BYTES:
                kind, length = header(received)
                if length > MAX_OUTPUT_BYTES:
                    raise ValueError("too long a frame")
                end = HEADER_BYTES + length
                if len(received) >= end:
                    payload = bytes(received[HEADER_BYTES:end])
                    del received[:end]
                    return kind, payload
            data = self._connection.recv(MAX_OUTPUT_BYTES)
            if not data:
                raise ValueError("the daemon has gone")
            received += data

    def _lost(self) -> int:
        """The end is told in the command's form, unless nothing was said yet."""
        if self._is_cancelled:
            return INTERRUPTED
        if not self._has_spoken:
            raise _Unheard
        if self._is_json:
            summary = f'"error": "daemon_lost", "message": "{_LOST}", "advice": "{_LOST_ADVICE}"'
            _write(f'{{"type": "summary", "ok": false, "code": {FAILURE}, {summary}}}\n'.encode(), is_error=False)
        else:
            _write(f"\nkensho: {_LOST}\n        {_LOST_ADVICE}\n".encode(), is_error=True)
        return FAILURE


def _write(payload: bytes, *, is_error: bool) -> bool:
    """False if the reader went away, as in `kensho ... | head`."""
    stream = sys.stderr if is_error else sys.stdout
    try:
        stream.buffer.write(payload)
        stream.buffer.flush()
    except BrokenPipeError:
        # The interpreter flushes at its end, and would complain.
        posix.dup2(posix.open("/dev/null", posix.O_WRONLY), stream.fileno())
        return False
    return True


def _tell_unheard(store: str, argv: "Sequence[str]") -> int | None:
    """None if nobody holds the daemon's lock (it has died just now), and for the command that starts no engine."""
    from pathlib import Path

    from kensho.base.clock import SystemClock
    from kensho.base.errors import Overloaded
    from kensho.cli.main import tell_error
    from kensho.cli.output import Output
    from kensho.cli.usage import words_of
    from kensho.server.daemon_lock import running_daemon

    who = running_daemon(Path(store))
    if who is None:
        return None
    output = Output(is_json="--json" in argv, is_quiet="--quiet" in argv, clock=SystemClock())
    if argv[words_of(list(argv))[0]] == "status":
        output.note(f"warning: the daemon of this store ({who}) does not answer; this is what the store says")
        return None
    advice = "come back in a few seconds; if it never answers it is stuck: end it with SIGKILL, and start it again"
    return tell_error(
        output, Overloaded(f"the daemon of this store ({who}) does not answer", advice=advice, retry_after_s=ACCEPT_S)
    )


def _connect(store: str) -> _socket.socket | None:
    """None: nobody listens, or it is none of ours. Raises _Unheard when so many wait that it takes no more."""
    address = f"{store}/{SOCKET_NAME}"
    folder = -1
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        if len(address.encode("utf-8", "surrogateescape")) > MAX_ADDRESS_BYTES:
            folder = posix.open(store, posix.O_PATH | posix.O_DIRECTORY)
            address = f"/proc/self/fd/{folder}/{SOCKET_NAME}"
        # As SO_SNDTIMEO, so that it waits until there is room in the queue: with a time limit of Python's it would not.
        connection.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, _QUEUE_S)
        connection.connect(address)
        credentials = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
        own = posix.getuid()
        if own != 0 and int.from_bytes(credentials[4:8], sys.byteorder) not in (0, own):
            raise PermissionError("somebody else's")
    except BlockingIOError:
        connection.close()
        raise _Unheard from None
    except (OSError, ValueError):  # no such file, nobody listens, a NUL in the path ...
        connection.close()
        return None
    finally:
        if folder >= 0:
            posix.close(folder)
    return connection


def _request(argv: "Sequence[str]", given: str, environ: "Mapping[str, str]") -> bytes:
    about = {
        "version": __version__,
        "store": given,
        "stdout": f"{sys.stdout.encoding}/{sys.stdout.errors}",
        "stderr": f"{sys.stderr.encoding}/{sys.stderr.errors}",
        "terminal": "1" if sys.stderr.isatty() else "0",
        "config": environ.get("KENSHO_CONFIG") or "",
    }
    return encode_request(about, list(argv))


def store_of(argv: "Sequence[str]", environ: "Mapping[str, str]") -> tuple[str, str]:
    """What `--store` says, and the folder of the store that the command means; no folder: it is no command for a
    daemon, or means settings that only the command itself can read. The rules are those of `cli.main` and `settings`;
    the daemon, which parses the arguments, refuses what was misunderstood here."""
    command, given, wants_value = "", "", False
    for argument in argv:
        if wants_value:
            given, wants_value = argument, False
        elif argument == "--":
            break
        elif argument == "--store":
            wants_value = True
        elif argument.startswith("--store="):
            given = argument[len("--store=") :]
        elif argument in ("-h", "--help", "--version", "--debug") or argument.startswith("--config"):
            return "", ""
        elif not command and not argument.startswith("-"):
            command = argument
    if command not in SERVED or wants_value:
        return "", ""
    store = given or environ.get("KENSHO_STORE") or ""
    if not store:
        if environ.get("KENSHO_CONFIG"):
            return "", ""  # it may name the store
        data = environ.get("XDG_DATA_HOME") or f"{environ.get('HOME') or '.'}/.local/share"
        store = f"{data}/kensho"
    return given, "" if store.startswith("~") else store
