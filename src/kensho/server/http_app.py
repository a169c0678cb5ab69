"""The daemon's HTTP interface: health, models, and answers in the manner of OpenAI's API.

    GET  /health                    200 when some model can answer, also under overload, else 503
    GET  /v1/models[/{model}]       what is installed, and the tasks that it can do
    POST /v1/chat/completions       see `completions`
    POST /v1/completions

Everything else is 404 in the same shape of errors. Looking at health and models counts as no use of a model.
"""

import asyncio
from collections.abc import Callable, Iterable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from kensho.app import Kensho
from kensho.app.status import ModelStatus
from kensho.base.clock import Clock
from kensho.server.completions import Completions
from kensho.server.host_guard import HostGuard
from kensho.server.openai_errors import Problem
from kensho.server.openai_reply import model_card
from kensho.server.openai_request import parse_chat, parse_completion
from kensho.server.responses import JSON, send_json, send_problem
from kensho.server.standing import standing


def make_http_app(
    app: Kensho,
    *,
    names: Iterable[str],
    token: Callable[[], str],
    draw_seed: Callable[[], int],
    abort: Callable[[Scope], None],
    clock: Clock,
) -> ASGIApp:
    """The ASGI application. `names`: of this server, for the `Host` header; the others: see `Completions`."""
    chat = Completions(app, parse_chat, is_chat=True, token=token, draw_seed=draw_seed, abort=abort, clock=clock)
    completion = Completions(
        app, parse_completion, is_chat=False, token=token, draw_seed=draw_seed, abort=abort, clock=clock
    )
    routes = [
        Route("/health", _Health(app), methods=["GET", "HEAD"]),
        Route("/v1/models", _Models(app), methods=["GET", "HEAD"]),
        Route("/v1/models/{model}", _Models(app), methods=["GET", "HEAD"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completion, methods=["POST"]),
    ]
    return HostGuard(Starlette(routes=routes, exception_handlers={HTTPException: _tell}), names)


class _Health:
    """Whether a restart, or another machine, is called for. Overload calls for neither: what is important is answered,
    and a watchdog that restarts an overloaded daemon takes that away too."""

    def __init__(self, app: Kensho) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, loaded = await standing(self._app)
        is_able = any(model.version and model.state != "damaged" for model in status.models)
        queues = {model.model: model.level for model in loaded}
        body = {"status": status.state, "sentence": status.sentence, "queues": queues}
        await send_json(send, 200 if is_able else 503, body)


class _Models:
    """All of them, or the one that the path names."""

    def __init__(self, app: Kensho) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cards = await self._cards()
        name = scope["path_params"].get("model")
        if name is None:
            await send_json(send, 200, {"object": "list", "data": list(cards.values())})
        elif name in cards:
            await send_json(send, 200, cards[name])
        else:
            message = f"model {name[:80]!r} is not installed; known are: {', '.join(cards) or 'none'}"
            await send_problem(send, Problem(404, message, "invalid_request_error", "model_not_found", "model"))

    async def _cards(self) -> dict[str, dict[str, object]]:
        """By name: models first, since there are clients that take the first one; then tasks, which come before a model
        of the same name when they are asked for, too."""
        status, _ = await standing(self._app)
        releases = await asyncio.to_thread(self._app.releases)
        tasks = await asyncio.to_thread(self._app.tasks)
        at_s = {(release.model, release.version): release.installed_at for release in releases}
        known = {model.model: model for model in status.models if model.version}

        def card(name: str, model: ModelStatus, **more: object) -> dict[str, object]:
            about = {**more, "version": model.answering or model.version, "state": model.state, "tier": model.tier}
            return model_card(name, at_s.get((model.model, model.version), 0.0), about)

        return {name: card(name, model) for name, model in known.items()} | {
            task.name: card(task.name, known[task.answering], task=task.models, answering=task.answering)
            for task in tasks
            if task.answering in known
        }


async def _tell(request: Request, error: Exception) -> Response:
    """Starlette's own errors (no such path, wrong method) in the API's shape."""
    assert isinstance(error, HTTPException)  # noqa: S101  # registered for nothing else
    said = f"{error.detail}: {request.method} {request.url.path[:200]}"
    problem = Problem(error.status_code, said, "invalid_request_error", "unknown_url")
    return Response(msgspec.json.encode(problem.body()), problem.status, error.headers, JSON)
