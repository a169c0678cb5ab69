"""Who may call the HTTP server: requests that name it, and no page of another site.

A page that a person opens anywhere can make the browser send requests to this machine: by an address that its owner's
name server turns to 127.0.0.1 (DNS rebinding), then even with answers read. Such a request carries the page's name in
`Host`, so only known names are taken (421). A page that posts blindly is given away by `Origin` (403). There are no
CORS headers: no page of another origin reads anything here.
"""

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from kensho.server.openai_errors import Problem
from kensho.server.responses import send_problem

LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")


class HostGuard:
    """Lets a request through to `app`, or refuses it. `names` are host names and addresses, without ports."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        problem: Problem | None = None
        if host_name(host) not in self._names:
            said = f"this server is not {host[:80]!r}" if host else "there is no Host header"
            problem = _refused(421, f"{said}; call it by a name it knows, or give it the name: kensho serve --names")
        elif origin is not None and scope["method"] not in ("GET", "HEAD") and not self._is_known(origin):
            problem = _refused(403, f"pages of {origin[:80]!r} may not use this server")
        if problem is None:
            await self._app(scope, receive, send)
        else:
            await send_problem(send, problem)

    def _is_known(self, origin: str) -> bool:
        return host_name(origin.partition("://")[2]) in self._names


def host_name(authority: str) -> str:
    """The name in `name:port`, `[::1]:port` or `name`, in lower case; empty for what is none of these."""
    name, bracket, rest = authority.partition("]")
    if authority.startswith("[") and bracket:
        name, port = name[1:], rest.removeprefix(":")
    else:
        name, _, port = authority.partition(":")
    return name.lower().removesuffix(".") if not port or (port.isascii() and port.isdigit()) else ""


def _refused(status: int, message: str) -> Problem:
    return Problem(status, message, "invalid_request_error", "host_not_allowed")
