"""How many files and sockets the daemon may have open, and how many of them are for connections.

A daemon without a descriptor left cannot start an engine, open its store or take a connection: so connections get only
what the rest can spare.
"""

import asyncio
import contextlib
import resource
import select

WANTED = 4096
"""More than all that is counted here. Not the hard limit, which may be a thousand million: engine hosts inherit the
limit, and programs that use select(2) cannot have more than 1024 open."""

CONTROL_PLACES = 192
"""Connections on the store's socket. Each costs its client a process."""
HTTP_PLACES = 1000
TOLD = 64
"""HTTP connections beyond those, which are told that there is no place (guess)."""
ACCEPTED_AT_ONCE = 32
"""So many are taken from a listening socket before the first of them is looked at; asyncio is four such turns ahead."""

_RESERVED = 200
"""For engine hosts (7 each, 12 while one starts), the store and the log; 36 in all were measured with one model."""
_FEWEST = 16


def raise_limit() -> None:
    """Raise the soft limit of this process towards WANTED, as far as the hard one lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def http_places() -> int:
    """How many HTTP connections there may be at once under this process's limit."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY:
        return HTTP_PLACES
    return places_under(soft)


def places_under(limit: int) -> int:
    """Pure: `http_places` under a limit on descriptors."""
    others = _RESERVED + CONTROL_PLACES + TOLD + 2 * 4 * ACCEPTED_AT_ONCE
    return max(_FEWEST, min(HTTP_PLACES, limit - others))


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Whether something has come for it that the event loop has not handed over yet."""
    if transport.is_closing():
        return False
    waiting = select.poll()
    waiting.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(waiting.poll(0))
