"""Errors in the shape that clients of OpenAI's API know: a status and `{"error": {message, type, param, code}}`. Pure.

One table from error families to statuses, as `cli.exits` has one to exit codes. A refusal is 503 with `Retry-After`,
which the official clients honour and retry; so has every other error that knows when to come back, such as that of
engines that are all out. What goes on in the engines (processes, circuits) is no client's business: the log has it.
"""

import math

from kensho.base.errors import (
    ConfigError,
    Damaged,
    EngineError,
    KenshoError,
    NotEnoughMemory,
    NotInstalled,
    Overloaded,
    PoisonRequest,
    StorageError,
    TransportError,
    TrustError,
    UsageError,
)
from kensho.base.structs import Struct, field

NO_ENGINE = 502


class BadRequest(UsageError):
    """The request makes no sense; `param` is a fact: the field that is wrong, if one is."""

    code = "invalid_request"


class Problem(Struct):
    """An answer that is an error."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(factory=dict)

    def body(self) -> dict[str, object]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


_TABLE: tuple[tuple[type[KenshoError], int, str, str], ...] = (
    # first match wins: the special before the general
    (NotInstalled, 404, "invalid_request_error", "model_not_found"),
    (ConfigError, 400, "invalid_request_error", ""),
    (PoisonRequest, 422, "invalid_request_error", ""),
    (Overloaded, 503, "overloaded_error", ""),
    (NotEnoughMemory, 503, "overloaded_error", ""),
    (EngineError, NO_ENGINE, "engine_error", ""),
    (Damaged, 503, "storage_error", ""),
    (StorageError, 503, "storage_error", ""),
    (TransportError, 503, "network_error", ""),
    (TrustError, 500, "trust_error", ""),
)


def problem_of(error: KenshoError) -> Problem:
    """Status and words for an error. `code` is OpenAI's where it has one, else Kensho's stable word."""
    status, kind, code = next(
        ((status, kind, code) for family, status, kind, code in _TABLE if isinstance(error, family)),
        (500, "server_error", ""),
    )
    param = error.facts.get("param")
    headers = {}
    after_s = error.facts.get("retry_after_s", 1.0 if isinstance(error, Overloaded) else None)
    if isinstance(after_s, int | float):
        # RFC 9110 knows whole seconds; the official clients read the finer one first.
        headers = {"retry-after": str(max(1, math.ceil(after_s))), "retry-after-ms": str(math.ceil(after_s * 1000))}
    words = _no_engine(after_s) if status == NO_ENGINE else str(error)
    return Problem(status, words, kind, code or error.code, param if isinstance(param, str) else None, headers)


def _no_engine(after_s: object) -> str:
    again = f"come back in {max(1, math.ceil(after_s))} s" if isinstance(after_s, int | float) else "the log has more"
    return f"no engine could answer; {again}"
