"""A process that must not use the network says so to the interpreter, and every try is refused and told.

Python's audit events (PEP 578) fire before a connection or a name look-up begins, whatever library asks for it, and a
hook cannot be taken out again. Engine hosts and compile children install this first thing; so does every command under
`--no-network`. Sockets of the Unix family stay allowed: they do not leave the machine.

This guards against mistakes, not against hostile native code, which can make system calls without the interpreter;
for that, run the process in an empty network namespace as the demonstration does.
"""

import sys
from collections.abc import Callable

from kensho.base.errors import NetworkNotAllowed

_WATCHED = frozenset({"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"})


def forbid_network(on_try: Callable[[str], None] | None = None) -> None:
    """From now on, for the life of this process, a connection beyond this machine raises NetworkNotAllowed.

    `on_try` is called with a description first, so that a try which somebody swallows is still known.
    """

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _WATCHED:
            return
        address = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if isinstance(address, str | bytes) and event in ("socket.connect", "socket.sendto"):
            return  # a Unix socket's path
        tried = f"{event} {address!r}"
        if on_try is not None:
            on_try(tried)
        raise NetworkNotAllowed(f"a connection was tried and refused: {tried}", advice="run it without --no-network")

    sys.addaudithook(hook)
