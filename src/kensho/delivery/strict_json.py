"""JSON as a signed document may use it, and nothing more. Pure. Every refusal is a TrustError.

Refused: anything but UTF-8, more bytes than the caller's limit, duplicate keys, floats, NaN and infinities, integers
of more than 19 digits, nesting that exhausts the parser, an object with a key too few or too many, a value of
another type or out of range. Two readers can then never see two meanings in the same signed bytes.

    fields = Fields(parse(data, what="the manifest", max_bytes=4096), "the manifest", {"format", "model"})
    model = fields.text("model", max_bytes=64)

The standard library's parser is used because the offline start reads documents too (import: 5 ms; msgspec: 37 ms).
"""

import json
from collections.abc import Set
from typing import NoReturn

from kensho.base.errors import TrustError

MAX_DIGITS = 19
"""2^63 has 19 digits. A longer number is an attack on the quadratic conversion, not a size."""


def parse(data: bytes, *, what: str, max_bytes: int) -> object:
    """The value in the bytes. O(n) time; memory at most some 25 x n, so `max_bytes` bounds both."""
    if len(data) > max_bytes:
        refuse(f"{what} has {len(data)} bytes; at most {max_bytes} are allowed")
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
    except (ValueError, RecursionError) as error:
        raise TrustError(f"{what} is not strict JSON ({error})", advice=_ADVICE) from error


def dump(value: object) -> bytes:
    """Canonical bytes: keys sorted, no white space, UTF-8. The same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def refuse(reason: str) -> NoReturn:
    """Raise the TrustError of a malformed document."""
    raise TrustError(reason, advice=_ADVICE)


class Fields:
    """One JSON object with exactly the keys `names`; each method returns one value of one type, or refuses."""

    def __init__(self, value: object, what: str, names: Set[str]) -> None:
        if not isinstance(value, dict):
            refuse(f"{what} is not a JSON object")
        if value.keys() != names:
            odd = sorted(value.keys() ^ names)
            refuse(f"{what} has missing or unknown keys: {', '.join(odd)[:200]}")
        self._values: dict[str, object] = value
        self._what = what

    def value(self, name: str) -> object:
        """Whatever it is: to be taken apart by `Fields` of its own."""
        return self._values[name]

    def text(self, name: str, *, max_bytes: int) -> str:
        """A string of at most `max_bytes` in UTF-8 (so without lone surrogates)."""
        value = self._values[name]
        if not isinstance(value, str):
            self._refuse(name, "is not a string")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            self._refuse(name, "is not Unicode text")
        if size > max_bytes:
            self._refuse(name, f"has {size} bytes; at most {max_bytes} are allowed")
        return value

    def optional_text(self, name: str, *, max_bytes: int) -> str | None:
        return None if self._values[name] is None else self.text(name, max_bytes=max_bytes)

    def integer(self, name: str, *, low: int, high: int) -> int:
        """An integer in [low, high]; `true` is not one."""
        value = self._values[name]
        if type(value) is not int or not low <= value <= high:
            self._refuse(name, f"is not an integer from {low} to {high}")
        return value

    def flag(self, name: str) -> bool:
        value = self._values[name]
        if not isinstance(value, bool):
            self._refuse(name, "is neither true nor false")
        return value

    def items(self, name: str, *, low: int, high: int) -> list[object]:
        """A list of `low` to `high` values."""
        value = self._values[name]
        if not isinstance(value, list) or not low <= len(value) <= high:
            self._refuse(name, f"is not a list of {low} to {high} entries")
        return value

    def _refuse(self, name: str, reason: str) -> NoReturn:
        refuse(f"{self._what}: '{name}' {reason}")


_ADVICE = "the metadata is malformed; tell its publisher"


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _integer(digits: str) -> int:
    if len(digits.removeprefix("-")) > MAX_DIGITS:
        raise ValueError("integer too long")
    return int(digits)


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"number {text[:20]} is not an integer")
