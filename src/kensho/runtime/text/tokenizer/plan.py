"""How a tokenizer turns text into pieces and ids into text, as plain values: the `meta` of the tables. Pure.

Order of an encoding, the library's own: added tokens are found in the raw text; what is between them is normalised;
added tokens are found in that; the rest gets its marks, is cut, and each piece is encoded by merges.
"""

from typing import Any, Literal, get_args

from kensho.base.structs import Struct, fields
from kensho.runtime.text.tokenizer.refuse import TablesRefused

Symbols = Literal["bytes", "chars"]
"""What merges begin with: bytes (byte-level), or characters, with byte tokens for those that are no token."""
Lead = Literal["never", "always", "first"]
"""Which parts of a text get `lead` in front, unless they begin with it."""
Joining = Literal["bytes", "fallback", "metaspace"]

_MAX_TEXT = 1 << 20
_MAX_LIST = 4096


class Plan(Struct, kw_only=True):
    symbols: Symbols
    normalizers: tuple[tuple[str, ...], ...]
    """("replace", old, new), ("prepend", text) or ("nfc",), in order."""
    unicode: str
    """Version of Unicode that was probed for NFC; empty if nothing depends on it."""
    space: str
    """What a space becomes after normalising; empty if it stays."""
    lead: str
    lead_when: Lead
    cuts_at_joints: bool
    """Whether that is worth it: False where nearly all pairs are joined."""
    patterns: tuple[str, ...]
    """Of `re`: over class characters for bytes, over the text itself for characters."""
    max_token_chars: int
    ignores_merges: bool
    """A whole piece that is a token is that token, whatever merges would make of it."""
    byte_ids: tuple[int, ...]
    """The id of each of the 256 bytes."""
    first_ids: tuple[int, ...]
    """Put around a raw prompt by the post-processor."""
    last_ids: tuple[int, ...]
    joining: Joining
    joined_mark: str
    """A character of tokens that becomes `joined_space` in text; empty for none."""
    joined_space: str
    is_byte_joined: bool
    """Whether runs of byte tokens become characters."""
    strips: tuple[tuple[str, int], ...]
    """(character, how many at most) dropped at the beginning of a text."""


def parse_plan(document: object) -> Plan:
    """The plan in `meta["plan"]`. Raises TablesRefused."""
    if not isinstance(document, dict) or set(document) != set(fields(Plan)):
        raise TablesRefused("its plan has other fields")
    read = _Fields(document)
    plan = Plan(
        symbols=read.choice("symbols", Symbols),
        normalizers=tuple(read.normalizer(item) for item in read.items("normalizers")),
        unicode=read.text("unicode"),
        space=read.text("space"),
        lead=read.text("lead"),
        lead_when=read.choice("lead_when", Lead),
        cuts_at_joints=read.flag("cuts_at_joints"),
        patterns=tuple(str(item) for item in read.items("patterns")),
        max_token_chars=read.integer("max_token_chars"),
        ignores_merges=read.flag("ignores_merges"),
        byte_ids=read.integers("byte_ids"),
        first_ids=read.integers("first_ids"),
        last_ids=read.integers("last_ids"),
        joining=read.choice("joining", Joining),
        joined_mark=read.text("joined_mark"),
        joined_space=read.text("joined_space"),
        is_byte_joined=read.flag("is_byte_joined"),
        strips=tuple(read.strip(item) for item in read.items("strips")),
    )
    if len(plan.byte_ids) != 256 or len(plan.joined_mark) > 1 or (plan.symbols == "chars" and len(plan.patterns) > 1):
        raise TablesRefused("its plan cannot be followed")
    return plan


class _Fields:
    def __init__(self, document: dict[str, object]) -> None:
        self._document = document

    def text(self, name: str) -> str:
        value = self._document[name]
        if not isinstance(value, str) or len(value) > _MAX_TEXT:
            raise TablesRefused(f"{name} is no text")
        return value

    def flag(self, name: str) -> bool:
        value = self._document[name]
        if not isinstance(value, bool):
            raise TablesRefused(f"{name} is neither true nor false")
        return value

    def integer(self, name: str) -> int:
        return _number(self._document[name], name)

    def items(self, name: str) -> list[object]:
        value = self._document[name]
        if not isinstance(value, list) or len(value) > _MAX_LIST:
            raise TablesRefused(f"{name} is no list")
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        return tuple(_number(item, name) for item in self.items(name))

    def choice(self, name: str, kind: Any) -> Any:
        value = self._document[name]
        if value not in get_args(kind):
            raise TablesRefused(f"{name} is none of those known")
        return value

    def normalizer(self, item: object) -> tuple[str, ...]:
        match item:
            case ["nfc"]:
                return ("nfc",)
            case ["prepend", str(text)]:
                return ("prepend", text)
            case ["replace", str(old), str(new)] if old:
                return ("replace", old, new)
        raise TablesRefused("a normaliser of it is not known")

    def strip(self, item: object) -> tuple[str, int]:
        match item:
            case [str(sign), int(count)] if len(sign) == 1 and count >= 0:
                return (sign, count)
        raise TablesRefused("what it drops is not known")


def _number(value: object, name: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise TablesRefused(f"{name} is no number in range")
    return value
