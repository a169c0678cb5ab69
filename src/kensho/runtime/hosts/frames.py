"""The words between Kensho and an engine host, as bytes on a Unix socket. Pure: no socket here.

A frame is a little-endian u32 payload length, one byte that names the message, and the payload: JSON for what is rare,
packed integers for ids. Nothing is unpickled. A frame above 1 MiB is refused before its payload is read.

    parent -> host   Ping, Load, Generate, Cancel, Exchange, Fault
    host -> parent   Pong, Loaded, Token, Done, Exchanged, Failed

Every answer carries its request's number, so that what is still on its way after a Cancel is recognised. Tensors do not
travel here: an Exchange says where they lie in the memory that both sides share (`tensor_segment`).
"""

import json
import struct
from collections.abc import Callable
from typing import Literal, assert_never, get_args

from kensho.base.errors import ConfigError, EngineError
from kensho.base.inference import MAX_STOP_IDS, Sampling
from kensho.base.structs import Struct

MAX_PAYLOAD_BYTES = 1 << 20
"""Room for 260 000 token ids."""
MAX_TENSORS = 16
MAX_DIMENSIONS = 8
_HEAD = struct.Struct("<IB")
_REQUEST = struct.Struct("<I")
_TOKEN = struct.Struct("<II")
_DONE = struct.Struct("<IB")
_GENERATE = struct.Struct("<IIIIdqI")

Tier = Literal["raw", "mapped", "mixed", "packed"]
DoneReason = Literal["stop", "length", "context", "cancelled"]
DType = Literal["float16", "float32", "float64", "int8", "int32", "int64", "uint8"]
"""What a tensor may be made of: any bytes are valid values of each."""
Operation = Literal["logits", "echo"]
FaultKind = Literal["fail", "hang", "slow", "crash", "nan", "oom", "wrong", "truncate", "slow_start", "ignore_sigterm"]
_TIERS: tuple[Tier, ...] = get_args(Tier)
_REASONS: tuple[DoneReason, ...] = get_args(DoneReason)
_DTYPES: tuple[DType, ...] = get_args(DType)
_OPERATIONS: tuple[Operation, ...] = get_args(Operation)
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


class Ping(Struct):
    """Asks whether the host is listening."""


class Pong(Struct):
    """It is."""


class Load(Struct):
    """Load this model; answered by Loaded or Failed (request 0)."""

    graph_folder: str
    model_folder: str
    tier: Tier
    max_context: int
    threads: int


class Loaded(Struct):
    max_context: int
    seconds: float


class Generate(Struct):
    """Make tokens after prompt + accepted; answered by Tokens and one Done or Failed."""

    request: int
    prompt_ids: tuple[int, ...]
    accepted_ids: tuple[int, ...]
    sampling: Sampling


class Token:
    """The message that matters: nine of ten. Written out, since making a Struct takes 2 us (4 with cold caches)."""

    __slots__ = ("id", "request")
    __match_args__ = ("request", "id")

    def __init__(self, request: int, id: int) -> None:
        self.request = request
        self.id = id

    def __eq__(self, other: object) -> bool:
        return type(other) is Token and (other.request, other.id) == (self.request, self.id)

    def __hash__(self) -> int:
        return hash((self.request, self.id))

    def __repr__(self) -> str:
        return f"Token(request={self.request}, id={self.id})"


class Done(Struct):
    """`context`: the model's context is full."""

    request: int
    reason: DoneReason


class Failed(Struct):
    """The request failed, the host lives. `error` is from `error_wire.describe_error`."""

    request: int
    error: dict[str, object]


class Cancel(Struct):
    request: int


class TensorHeader(Struct):
    """One array: `shape` in elements, C order, at `offset` bytes into the segment. Not yet checked against it."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    offset: int


class Exchange(Struct):
    """Compute `operation` on these tensors; answered by Exchanged or Failed."""

    request: int
    operation: Operation
    tensors: tuple[TensorHeader, ...]


class Exchanged(Struct):
    """The result lies there until the next Exchange."""

    request: int
    tensors: tuple[TensorHeader, ...]


class Fault(Struct):
    """Misbehave in the next request (row S6). Ignored unless the host was started with faults allowed."""

    kind: FaultKind


Message = Ping | Pong | Load | Loaded | Generate | Token | Done | Failed | Cancel | Exchange | Exchanged | Fault
_KINDS: tuple[type[Message], ...] = (
    Ping,
    Pong,
    Load,
    Loaded,
    Generate,
    Token,
    Done,
    Failed,
    Cancel,
    Exchange,
    Exchanged,
    Fault,
)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}
_TOKEN_FRAME = struct.Struct("<IBII")
_TOKEN_HEAD = _HEAD.pack(_TOKEN.size, _NUMBERS[Token])


def encode(message: Message) -> bytes:
    """The frame of a message. Raises ConfigError when a number of the caller's does not fit into it."""
    try:
        if type(message) is Token:
            return _TOKEN_FRAME.pack(_TOKEN.size, _NUMBERS[Token], message.request, message.id)
        payload = _payload(message)
    except struct.error as error:
        raise ConfigError(f"request for tokens is out of range: {error}", advice="give smaller numbers") from error
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ConfigError(f"request of {len(payload)} bytes, {MAX_PAYLOAD_BYTES} at most", advice="shorten the prompt")
    return _HEAD.pack(len(payload), _NUMBERS[type(message)]) + payload


class Decoder:
    """Bytes in any pieces -> messages. Holds at most one frame. After an error the stream is unusable."""

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def is_within(self) -> bool:
        """Whether a part of a frame has come and the rest has not."""
        return bool(self._data)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete now. Raises EngineError on anything malformed; no other exception."""
        if len(data) == _TOKEN_FRAME.size and not self._data and data.startswith(_TOKEN_HEAD):
            return [Token(*_TOKEN.unpack_from(data, _HEAD.size))]
        self._data += data
        messages: list[Message] = []
        at = 0
        while len(self._data) - at >= _HEAD.size:
            size, kind = _HEAD.unpack_from(self._data, at)
            if size > MAX_PAYLOAD_BYTES or kind >= len(_KINDS):
                raise _malformed(f"kind {kind}, {size} bytes")
            end = at + _HEAD.size + size
            if len(self._data) < end:
                break
            messages.append(_parse(_KINDS[kind], bytes(self._data[at + _HEAD.size : end])))
            at = end
        del self._data[:at]
        return messages


def _malformed(what: str) -> EngineError:
    return EngineError(f"malformed frame on the engine host's socket ({what})", advice="restart the engine")


def _payload(message: Message) -> bytes:
    match message:
        case Ping() | Pong():
            return b""
        case Load(graph_folder, model_folder, tier, max_context, threads):
            return _json([graph_folder, model_folder, tier, max_context, threads])
        case Loaded(max_context, seconds):
            return _json([max_context, seconds])
        case Generate():
            return _pack_generate(message)
        case Token(request, token):
            return _TOKEN.pack(request, token)
        case Done(request, reason):
            return _DONE.pack(request, _REASONS.index(reason))
        case Failed(request, error):
            return _REQUEST.pack(request) + _json(error)
        case Cancel(request):
            return _REQUEST.pack(request)
        case Exchange(request, operation, tensors):
            return _json([request, operation, _plain_headers(tensors)])
        case Exchanged(request, tensors):
            return _json([request, _plain_headers(tensors)])
        case Fault(kind):
            return _json(kind)
    assert_never(message)


def _parse(kind: type[Message], payload: bytes) -> Message:
    try:
        return _PARSERS[kind](payload)
    except (ValueError, TypeError, struct.error, RecursionError, ConfigError) as error:
        raise _malformed(f"{kind.__name__}: {str(error)[:100]}") from error


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _pack_generate(message: Generate) -> bytes:
    prompt, accepted, sampling = message.prompt_ids, message.accepted_ids, message.sampling
    head = _GENERATE.pack(
        message.request,
        len(prompt),
        len(accepted),
        sampling.max_tokens,
        sampling.temperature,
        sampling.seed,
        len(sampling.stop_ids),
    )
    ids = (*prompt, *accepted, *sampling.stop_ids)
    return head + struct.pack(f"<{len(ids)}I", *ids)


def _parse_generate(payload: bytes) -> Generate:
    request, prompts, accepteds, max_tokens, temperature, seed, stops = _GENERATE.unpack_from(payload)
    if stops > MAX_STOP_IDS:
        raise ValueError("too many stop ids")
    if len(payload) != _GENERATE.size + 4 * (prompts + accepteds + stops):
        raise ValueError("length of the ids")
    ids = struct.unpack_from(f"<{prompts + accepteds + stops}I", payload, _GENERATE.size)
    sampling = Sampling(max_tokens, temperature, seed, ids[prompts + accepteds :])
    return Generate(request, ids[:prompts], ids[prompts : prompts + accepteds], sampling)


def _parse_load(payload: bytes) -> Load:
    graph_folder, model_folder, tier, max_context, threads = _list(payload, 5)
    if tier not in _TIERS:
        raise ValueError("tier")
    return Load(
        _text(graph_folder),
        _text(model_folder),
        tier,
        _count(max_context),
        _count(threads),
    )


def _parse_loaded(payload: bytes) -> Loaded:
    max_context, seconds = _list(payload, 2)
    if not isinstance(seconds, float) or not 0 <= seconds < float("inf"):
        raise ValueError("seconds")
    return Loaded(_count(max_context), seconds)


def _parse_done(payload: bytes) -> Done:
    request, reason = _DONE.unpack(payload)
    if reason >= len(_REASONS):
        raise ValueError("reason")
    return Done(request, _REASONS[reason])


def _parse_failed(payload: bytes) -> Failed:
    (request,) = _REQUEST.unpack_from(payload)
    error = json.loads(payload[_REQUEST.size :])
    if not isinstance(error, dict):
        raise TypeError("error")
    return Failed(request, error)


def _plain_headers(tensors: tuple[TensorHeader, ...]) -> list[object]:
    return [[tensor.name, tensor.dtype, tensor.shape, tensor.offset] for tensor in tensors]


def _parse_exchange(payload: bytes) -> Exchange:
    request, operation, tensors = _list(payload, 3)
    if operation not in _OPERATIONS:
        raise ValueError("operation")
    return Exchange(_count(request), operation, _headers(tensors))


def _parse_exchanged(payload: bytes) -> Exchanged:
    request, tensors = _list(payload, 2)
    return Exchanged(_count(request), _headers(tensors))


def _headers(items: object) -> tuple[TensorHeader, ...]:
    if not isinstance(items, list) or len(items) > MAX_TENSORS:
        raise ValueError("tensors")
    return tuple(_header(item) for item in items)


def _header(item: object) -> TensorHeader:
    match item:
        case [str(name), dtype, list(shape), offset] if dtype in _DTYPES and len(shape) <= MAX_DIMENSIONS:
            return TensorHeader(name, dtype, tuple(_count(size) for size in shape), _count(offset))
    raise ValueError("tensor")


def _parse_fault(payload: bytes) -> Fault:
    kind = json.loads(payload)
    if kind not in FAULT_KINDS:
        raise ValueError("fault")
    return Fault(kind)


def _parse_nothing(payload: bytes, message: Message) -> Message:
    if payload:
        raise ValueError("payload")
    return message


def _list(payload: bytes, length: int) -> list[object]:
    items = json.loads(payload)
    if not isinstance(items, list) or len(items) != length:
        raise ValueError("fields")
    return items


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise ValueError("count")
    return value


_PARSERS: dict[type[Message], Callable[[bytes], Message]] = {
    Ping: lambda payload: _parse_nothing(payload, Ping()),
    Pong: lambda payload: _parse_nothing(payload, Pong()),
    Load: _parse_load,
    Loaded: _parse_loaded,
    Generate: _parse_generate,
    Token: lambda payload: Token(*_TOKEN.unpack(payload)),
    Done: _parse_done,
    Failed: _parse_failed,
    Cancel: lambda payload: Cancel(*_REQUEST.unpack(payload)),
    Exchange: _parse_exchange,
    Exchanged: _parse_exchanged,
    Fault: _parse_fault,
}
