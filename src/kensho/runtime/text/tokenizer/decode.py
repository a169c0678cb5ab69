"""Token ids -> text, as the library's decoders do it: byte-level, byte fallback, Metaspace. Special tokens left out."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from kensho.runtime.text.tokenizer.lookup import Vocabulary
from kensho.runtime.text.tokenizer.plan import Plan
from kensho.runtime.text.tokenizer.refuse import TablesRefused
from kensho.runtime.text.tokenizer.tables import BLOCK_BYTES, Tables

NOTHING, TEXT, BYTE, SPECIAL = range(4)
"""What an id is: none at all, text of its own, one byte of a run, a special token. The other bits are `lookup`'s."""
_KINDS = 3


class Decoder:
    """Safe to use from several threads."""

    def __init__(self, tables: Tables, plan: Plan) -> None:
        self._plan = plan
        self._vocabulary = Vocabulary(tables)
        self._tables = tables
        self._kinds, self._kinds_block = tables.view("kinds")

    def kind_of(self, token: int) -> int:
        """NOTHING, TEXT, BYTE or SPECIAL."""
        if not 0 <= token < len(self._kinds):
            return NOTHING
        self._tables.check(self._kinds_block + token // BLOCK_BYTES)
        return self._kinds[token] & _KINDS

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids together. Cost: 1 us a token. Raises TablesRefused (damaged)."""
        known = [(token, kind) for token in ids if (kind := self.kind_of(token)) in (TEXT, BYTE)]
        if self._plan.joining == "bytes":
            return b"".join(self._vocabulary.text(token) for token, _ in known).decode("utf-8", "replace")
        text = "".join(
            self._bytes(tokens) if is_run else self._texts(tokens)
            for is_run, tokens in groupby(known, key=lambda item: self._plan.is_byte_joined and item[1] == BYTE)
        )
        for sign, count in self._plan.strips:
            kept = text.lstrip(sign)
            text = text[min(len(text) - len(kept), count) :]
        if self._plan.joining == "metaspace" and known and self._plan.lead_when != "never":
            # In the first token of a text every mark is dropped.
            first = self._vocabulary.text(known[0][0]).decode("utf-8", "replace")
            text = first.replace(self._plan.joined_mark, "") + text[len(first) :]
        return text

    def _texts(self, tokens: Iterable[tuple[int, int]]) -> str:
        text = b"".join(self._vocabulary.text(token) for token, _ in tokens).decode("utf-8", "replace")
        return text.replace(self._plan.joined_mark, self._plan.joined_space) if self._plan.joined_mark else text

    def _bytes(self, tokens: Iterable[tuple[int, int]]) -> str:
        """A run of bytes: its characters, or, if it is not valid as a whole, one sign of doubt for each byte."""
        try:
            data = bytes(int(self._vocabulary.text(token)[3:5], 16) for token, _ in tokens)
        except ValueError as error:
            raise TablesRefused("a byte token is none") from error
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(data)
