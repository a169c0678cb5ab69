"""The console script `kensho`: does what can be done before anything is imported, and hands the rest to `cli.main`.

Three things cannot wait for 100 ms of imports: help, a command that the store's daemon runs (`client`), and the engine
host of a first answer, which is forked here so that it imports its engine on another core while this process opens the
store (`prefork`). Rules: (1) nothing is imported above the line that needs it; (2) whatever is not understood here is
left to `cli.main`, which tells what is wrong; (3) a host is forked only for a command that can begin to answer, and is
ended on every way out.
"""

import os
import sys

from kensho import __version__
from kensho.cli.client import FAILURE, INTERRUPTED, store_of, try_daemon
from kensho.cli.usage import help_text, words_of

TYPE_CHECKING = False  # importing `typing` takes longer than asking the daemon
if TYPE_CHECKING:
    from collections.abc import Mapping

    from kensho.runtime.hosts.prefork import Prefork

SHARED = (
    "contextvars",
    "datetime",
    "inspect",
    "pathlib",
    "signal",
    "socket",
    "textwrap",
    "weakref",
    "hashlib",
    "kensho.base.clock",
    "kensho.runtime.hosts.error_wire",
    "kensho.runtime.hosts.frames",
    "kensho.runtime.cache.pins",
    "kensho.runtime.cache.header",
)
"""What this process and an engine host both need: imported before the fork, it is paid for once."""


def main() -> int:
    """Run the command of `sys.argv`; returns its exit code."""
    try:
        return _main(sys.argv[1:], os.environ)
    except KeyboardInterrupt:  # before the command could begin: nothing was done, and there is nothing to say
        return INTERRUPTED


def _main(arguments: list[str], environ: "Mapping[str, str]") -> int:
    _have_streams()
    text = _text_at_once(arguments[0] if arguments else "")
    if text:
        return _say(text)
    code = try_daemon(arguments, environ)
    if code is not None:
        return code
    first_host = _fork_host(arguments, environ)
    try:
        from kensho.cli.main import main as run

        code = run(arguments, first_host=first_host)
    finally:
        if first_host is not None:
            first_host.close()
    if first_host is not None:
        _leave(code)
    return code


def will_answer(arguments: list[str], environ: "Mapping[str, str]") -> bool:
    """Whether the command is a `kensho run` that can begin: its arguments make sense and the store is there."""
    words = words_of(arguments)
    if not words or arguments[words[0]] != "run":
        return False
    _, store = store_of(arguments, environ)
    if not store or not os.path.exists(f"{store}/format"):
        return False
    from kensho.base.errors import UsageError
    from kensho.cli.command_line import Said, parse

    try:
        parse(arguments)
    except (UsageError, Said):
        return False
    return True


def _leave(code: int) -> None:
    """End the process without taking the interpreter apart: 8 ms of CPU for memory that the kernel frees at once."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        return  # the reader has gone; the interpreter's own end deals with it
    os._exit(code)


def _have_streams() -> None:
    """Where stdout or stderr was closed (`>&-`), what is said goes nowhere, and no other file takes the number."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as the process lives


def _say(text: str) -> int:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:  # the reader has gone, or the disk is full; the interpreter flushes at its end, and would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    return 0


def _text_at_once(argument: str) -> str:
    if argument in ("-h", "--help"):
        return help_text()
    return f"kensho {__version__}\n" if argument == "--version" else ""


def _fork_host(arguments: list[str], environ: "Mapping[str, str]") -> "Prefork | None":
    import gc

    gc.disable()  # modules are not garbage: looking for it costs the two processes 8 ms
    if not will_answer(arguments, environ):
        gc.enable()
        return None
    from importlib import import_module

    from kensho.runtime.hosts.prefork import prefork

    for name in SHARED:
        import_module(name)
    try:
        first_host = prefork(environ)
    except OSError:
        return None  # the first host is started as every other one is
    _import_asyncio()
    return first_host


def _import_asyncio() -> None:
    """Without TLS, as where Python has none: 5 ms for what no event loop here uses. Others can still import it."""
    sys.modules["ssl"] = None  # type: ignore[assignment]  # documented: makes its import an ImportError
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]
