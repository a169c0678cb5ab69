"""Text -> token ids, by the tables alone: the same ids as the `tokenizers` library, text for text.

    encoder = Encoder(tables)
    ids = encoder.encode("Bonjour <eos>")

About 1 us a word once it was seen, 5 us for a new one; nothing is imported but `re`, and `unicodedata` for NFC. Caches
are bounded (4 MB together). Texts that only the library can encode raise NeedsLibrary.
"""

from collections.abc import Callable

from kensho.runtime.text.tokenizer.added_tokens import parse_added
from kensho.runtime.text.tokenizer.classes import EXCEPTION, ClassMap, PatternCutter, compiled
from kensho.runtime.text.tokenizer.pieces import BytePieces, CharPieces
from kensho.runtime.text.tokenizer.plan import Plan
from kensho.runtime.text.tokenizer.refuse import TablesRefused
from kensho.runtime.text.tokenizer.tables import Tables

_EXCEPTION = chr(EXCEPTION)


class NeedsLibrary(Exception):
    """The text has a character that Python's Unicode and the library's know differently."""


class Encoder:
    """Safe to use from several threads: nothing of it changes but its caches."""

    def __init__(self, tables: Tables, plan: Plan) -> None:
        """Raises TablesRefused. Compiles patterns at the first use, not here."""
        self._plan = plan
        self._raw_tokens, self._normal_tokens = parse_added(tables.read("added"))
        self._class_map = ClassMap(tables.read("classes"))
        self._normalizers = [_normalizer(step, self._class_map) for step in plan.normalizers]
        self._pieces = BytePieces(tables, plan) if plan.symbols == "bytes" else CharPieces(tables, plan)
        self._cut: Callable[[str], list[str]] | None = None

    def encode(self, text: str) -> list[int]:
        """The ids, none added around them. Raises NeedsLibrary, TablesRefused (damaged), UnicodeEncodeError."""
        ids: list[int] = []
        is_first = True
        for part in self._raw_tokens.split(text) if self._raw_tokens else [text] if text else []:
            if isinstance(part, int):
                ids.append(part)
            else:
                self._encode_part(part, ids, is_first=is_first)
            is_first = False
        return ids

    def _encode_part(self, text: str, ids: list[int], *, is_first: bool) -> None:
        for normalize in self._normalizers:
            text = normalize(text)
        if self._normal_tokens is None:
            self._encode_between(text, ids, is_first=is_first)
            return
        for part in self._normal_tokens.split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                self._encode_between(part, ids, is_first=is_first)
            is_first = False

    def _encode_between(self, text: str, ids: list[int], *, is_first: bool) -> None:
        plan = self._plan
        if plan.space:
            text = text.replace(" ", plan.space)
        if (plan.lead_when == "always" or (plan.lead_when == "first" and is_first)) and text[:1] != plan.lead:
            text = plan.lead + text if text else text
        cut = self._cut or self._make_cut()
        ids += self._pieces.encode(cut(text))

    def _make_cut(self) -> Callable[[str], list[str]]:
        plan = self._plan
        if plan.symbols == "bytes":
            self._cut = PatternCutter(plan.patterns, self._class_map).cut
        elif plan.patterns:
            self._cut = compiled(plan.patterns[0]).findall
        else:
            self._cut = _no_cut
        return self._cut


def _no_cut(text: str) -> list[str]:
    return [text] if text else []


def _normalizer(step: tuple[str, ...], class_map: ClassMap) -> Callable[[str], str]:
    match step:
        case ("replace", old, new):
            return lambda text: text.replace(old, new)
        case ("prepend", lead):
            return lambda text: lead + text if text else text
        case ("nfc",):
            return lambda text: _nfc(text, class_map)
    raise TablesRefused("a normaliser of it is not known")


def _nfc(text: str, class_map: ClassMap) -> str:
    if text.isascii():
        return text
    import unicodedata

    if _EXCEPTION in class_map.classes(text):
        raise NeedsLibrary
    return unicodedata.normalize("NFC", text)
