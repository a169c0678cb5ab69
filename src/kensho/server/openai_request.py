"""What clients of OpenAI's API ask for, checked. Pure: bytes in, `Asked` out, or BadRequest.

Rules: (1) a field that is known is of its kind and range, or refused by name; (2) what would change the meaning of the
answer and cannot be done (n > 1, tools, logprobs, JSON mode, images) is refused, not forgotten; (3) every other field
is ignored, as servers of this API do. Source of the shapes: OpenAI's API reference, chat and legacy completions.

Greedy is the default (`temperature` 0), so that a question has one answer. `max_tokens` is what the context leaves.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from kensho.app.answers import EngineName, Priority
from kensho.base.clock import Seconds
from kensho.base.structs import Struct
from kensho.server.openai_errors import BadRequest

MAX_TOKENS = 32768
MAX_MESSAGES = 4096
MAX_STOPS = 16
MAX_STOP_CHARS = 256

MIN_DEADLINE_MS = 1.0
"""What is due sooner is no deadline: 503, which clients retry by themselves, would never become an answer."""
MAX_DEADLINE_MS = 86_400_000.0

Role = Literal["system", "developer", "user", "assistant"]


class Asked(Struct, kw_only=True):
    """One request for an answer."""

    model: str
    prompt: str | list[dict[str, str]]
    """A text to go on with, or a conversation of messages with `role` and `content`."""
    is_stream: bool
    has_usage: bool
    """A stream shall end with the counts of tokens."""
    max_tokens: int
    temperature: float
    seed: int | None
    """None: not given."""
    stops: tuple[str, ...]
    priority: Priority
    deadline_s: Seconds | None
    engine: EngineName | None
    """The only engine that may answer; None: any."""


class _Part(msgspec.Struct):
    type: str
    text: str = ""


class _Message(msgspec.Struct):
    role: Role
    content: str | Annotated[list[_Part], msgspec.Meta(max_length=1000)] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Common(msgspec.Struct, kw_only=True):
    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=5)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: str | Annotated[list[str], msgspec.Meta(max_length=MAX_STOPS)] | None = None
    n: int | None = None
    priority: Priority | None = None
    deadline_ms: Annotated[float, msgspec.Meta(ge=MIN_DEADLINE_MS, le=MAX_DEADLINE_MS)] | None = None
    engine: EngineName | None = None


class _Chat(_Common, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    logprobs: bool | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None


class _Completion(_Common, kw_only=True):
    prompt: str | list[str]
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None
    logprobs: int | None = None


_B = TypeVar("_B", bound=_Common)


def parse_chat(body: bytes, headers: Mapping[str, str]) -> Asked:
    """The body of POST /v1/chat/completions. `headers` by lower-case name."""
    asked = _decode(_Chat, body)
    refused = {
        "tools": bool(asked.tools),
        "functions": bool(asked.functions),
        "logprobs": bool(asked.logprobs),
        "response_format": (asked.response_format or {}).get("type", "text") != "text",
        "modalities": asked.modalities not in (None, [], ["text"]),
    }
    _refuse(refused)
    messages = [_message(message, f"messages[{index}]") for index, message in enumerate(asked.messages)]
    return _asked(asked, headers, messages, asked.max_completion_tokens or asked.max_tokens)


def parse_completion(body: bytes, headers: Mapping[str, str]) -> Asked:
    """The body of POST /v1/completions. `headers` by lower-case name."""
    asked = _decode(_Completion, body)
    refused = {
        "echo": bool(asked.echo),
        "suffix": bool(asked.suffix),
        "best_of": asked.best_of not in (None, 1),
        "logprobs": asked.logprobs is not None,
    }
    _refuse(refused)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if len(prompts) != 1:
        raise _bad(f"{len(prompts)} prompts were given; one is possible", "prompt")
    return _asked(asked, headers, prompts[0], asked.max_tokens)


def _decode(kind: type[_B], body: bytes) -> _B:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `")
        raise _bad(what, path.removeprefix("$.").rstrip("`") or _missing(what)) from error
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _bad(f"the body is not valid JSON ({error})", None) from error


def _missing(what: str) -> str | None:
    """The name in "Object missing required field `model`"."""
    return what.split("`")[1] if what.startswith("Object missing") else None


def _message(message: _Message, where: str) -> dict[str, str]:
    content = message.content or ""
    if not isinstance(content, str):
        others = [part.type for part in content if part.type != "text"]
        if others:
            raise _bad(f"content of type {others[0][:40]!r} cannot be given to this model", f"{where}.content")
        content = "".join(part.text for part in content)
    # The newer API's name of the same role; templates know the older one.
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def _asked(
    asked: _Common, headers: Mapping[str, str], prompt: str | list[dict[str, str]], max_tokens: int | None
) -> Asked:
    if asked.n not in (None, 1):
        raise _bad("only one answer to a request is possible", "n")
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    if any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise _bad(f"a stop string has 1 to {MAX_STOP_CHARS} characters", "stop")
    options = asked.stream_options
    return Asked(
        model=asked.model,
        prompt=prompt,
        is_stream=bool(asked.stream),
        has_usage=bool(options and options.include_usage),
        max_tokens=min(max_tokens or MAX_TOKENS, MAX_TOKENS),
        temperature=asked.temperature or 0.0,
        seed=asked.seed,
        stops=tuple(stops),
        priority=_priority(headers.get("x-kensho-priority"), asked.priority),
        deadline_s=_deadline_s(headers.get("x-kensho-deadline-ms"), asked.deadline_ms),
        engine=asked.engine,
    )


def _priority(header: str | None, given: Priority | None) -> Priority:
    """The header before the field; `normal` without either."""
    if header is None:
        return given or "normal"
    match header.strip().lower():
        case "critical" | "high" | "normal" | "low" as word:
            return word
    raise _bad("priority is critical, high, normal or low", "X-Kensho-Priority")


def _deadline_s(header: str | None, given_ms: float | None) -> Seconds | None:
    if header is not None:
        try:
            given_ms = float(header)
        except ValueError:
            given_ms = 0.0
        if not MIN_DEADLINE_MS <= given_ms <= MAX_DEADLINE_MS:
            raise _bad("a deadline is 1 ms at least and a day at most", "X-Kensho-Deadline-Ms")
    return None if given_ms is None else given_ms / 1000


def _refuse(found: Mapping[str, bool]) -> None:
    for name, is_asked in found.items():
        if is_asked:
            raise _bad(f"{name} is not possible here", name)


def _bad(message: str, param: str | None) -> BadRequest:
    return BadRequest(message, param=param)
