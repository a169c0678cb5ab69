"""An error of ours as plain data and back, so that a child's error is raised in the parent as what it was. Pure.

The class travels as its stable `code`; message, advice and the facts that are plain values travel with it. An unknown
code becomes EngineError, any foreign exception too: the receiver never fails on what it is sent.
"""

from collections.abc import Iterator, Mapping

from kensho.base.errors import EngineError, KenshoError

_MAX_TEXT = 4000
Plain = str | int | float | bool | None


def describe_error(error: BaseException) -> dict[str, object]:
    """The error as JSON-ready data: `code`, `message`, `advice`, `facts`. A foreign one becomes an EngineError's."""
    if not isinstance(error, KenshoError):
        error = EngineError(f"{type(error).__name__}: {error}"[:_MAX_TEXT])
    facts = {name: value for name, value in error.facts.items() if isinstance(value, Plain)}
    return {
        "code": error.code,
        "message": error.message[:_MAX_TEXT],
        "advice": error.advice[:_MAX_TEXT],
        "facts": {name: value[:_MAX_TEXT] if isinstance(value, str) else value for name, value in facts.items()},
    }


def restore_error(data: Mapping[str, object]) -> KenshoError:
    """The error that `describe_error` described, of the same class."""
    kind = _CLASSES.get(str(data.get("code")), EngineError)
    sent = data.get("facts")
    # A fact may not be called like a parameter of the constructor.
    facts = {str(k): v for k, v in sent.items() if k not in ("message", "advice")} if isinstance(sent, dict) else {}
    return kind(str(data.get("message", ""))[:_MAX_TEXT], advice=str(data.get("advice", ""))[:_MAX_TEXT], **facts)


def _classes(kind: type[KenshoError]) -> Iterator[type[KenshoError]]:
    """Those of `base.errors`: a special one that a module makes of them has its own constructor."""
    if kind.__module__ == KenshoError.__module__:
        yield kind
    for child in kind.__subclasses__():
        yield from _classes(child)


_CLASSES = {kind.code: kind for kind in _classes(KenshoError)}
