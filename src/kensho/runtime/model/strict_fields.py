"""One object of a parsed JSON document, read by someone who believes nothing: exact names, bounded values. Pure.

Raises ValueError, TypeError or TrustError (a digest that is none) for the caller to translate, once, into what the
document's damage means there.
"""

from typing import cast

from kensho.base.ids import Digest, parse_digest

MAX_TEXT = 256
MAX_LIST = 65536


class Fields:
    """A JSON object with exactly the named fields, or with more where a later version may have written it."""

    def __init__(self, document: object, names: tuple[str, ...], *, may_have_more: bool = False) -> None:
        if not isinstance(document, dict):
            raise TypeError("an object is missing")
        self._fields = cast("dict[str, object]", document)
        if missing := set(names) - set(self._fields):
            raise ValueError(f"fields are missing: {', '.join(sorted(missing))}")
        if not may_have_more and (extra := set(self._fields) - set(names)):
            raise ValueError(f"unknown fields: {', '.join(sorted(extra))[:MAX_TEXT]}")

    def value(self, name: str) -> object:
        return self._fields[name]

    def text(self, name: str) -> str:
        value = self._fields[name]
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise TypeError(f"{name} is not a short text")
        return value

    def digest(self, name: str) -> Digest:
        return parse_digest(self._fields[name])

    def integer(self, name: str) -> int:
        return check_integer(self._fields[name], name)

    def items(self, name: str) -> list[object]:
        value = self._fields[name]
        if not isinstance(value, list) or len(value) > MAX_LIST:
            raise TypeError(f"{name} is not a bounded list")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """They may be negative."""
        return tuple(check_integer(item, name, low=-(2**53)) for item in self.items(name))


def check_integer(value: object, name: str, low: int = 0) -> int:
    """An integer from `low` to 2**53, what every reader of JSON can hold. True is none."""
    if type(value) is not int or not low <= value <= 2**53:
        raise ValueError(f"{name} is not an integer in range")
    return value
