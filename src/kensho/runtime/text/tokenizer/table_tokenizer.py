"""A tokenizer made of compiled tables: what `text.Tokens` asks for, without loading the library.

The library is loaded, once, only for a text that the tables leave to it (a character that Python's Unicode and the
library's treat differently) and for good if the file turns out to be damaged: nobody gets a wrong id or an error.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kensho.base.ids import Digest
from kensho.runtime.text.detokenizer import Kept, Style
from kensho.runtime.text.text_facts import TextFacts, parse_facts
from kensho.runtime.text.tokenizer.decode import BYTE, TEXT, Decoder
from kensho.runtime.text.tokenizer.encode import Encoder, NeedsLibrary
from kensho.runtime.text.tokenizer.files import Place, drop_tables, open_tables, places
from kensho.runtime.text.tokenizer.plan import parse_plan
from kensho.runtime.text.tokenizer.refuse import TablesRefused
from kensho.runtime.text.tokenizer.tables import Tables

if TYPE_CHECKING:
    from kensho.runtime.text.library_tokenizer import LibraryTokenizer

_REFUSED = (TablesRefused, IndexError)
"""IndexError: a file whose sums are right and whose ids are not."""
_KEPT: dict[int, Kept] = {TEXT: "text", BYTE: "byte"}


class TableTokenizer:
    """Safe to use from several threads."""

    def __init__(self, tables: Tables, folder: Path, place: Place) -> None:
        """`folder` has the tokenizer.json that the tables were made from. Raises TablesRefused."""
        plan = parse_plan(tables.meta.get("plan"))
        if plan.unicode and _version(unicodedata.unidata_version) < _version(plan.unicode):
            raise TablesRefused(f"made with Unicode {plan.unicode}, this Python has {unicodedata.unidata_version}")
        try:
            self.facts: TextFacts = parse_facts(tables.meta.get("facts"))
        except ValueError as error:
            raise TablesRefused("its facts about the text are not readable") from error
        self._plan = plan
        self._encoder = Encoder(tables, plan)
        self._decoder = Decoder(tables, plan)
        self._folder = folder
        self._place = place
        self._library: LibraryTokenizer | None = None
        self.damage = ""
        """Why the tables are not used any more; empty while they are."""
        self.style: Style = "bytes" if plan.joining == "bytes" else "fallback"

    def encode(self, text: str, *, is_whole: bool) -> list[int]:
        """Raises ModelError only where the library is needed and fails."""
        if not self.damage:
            try:
                ids = self._encoder.encode(text)
                return [*self._plan.first_ids, *ids, *self._plan.last_ids] if is_whole else ids
            except NeedsLibrary:
                pass
            except _REFUSED as error:
                self._give_up(error)
        return self._load_library().encode(text, is_whole=is_whole)

    def decode(self, ids: Sequence[int]) -> str:
        if not self.damage:
            try:
                return self._decoder.decode(ids)
            except _REFUSED as error:
                self._give_up(error)
        return self._load_library().decode(ids)

    def kind_of(self, token: int) -> Kept:
        return _KEPT.get(self._decoder.kind_of(token), "nothing")

    def _give_up(self, error: Exception) -> None:
        self.damage = error.reason if isinstance(error, TablesRefused) else "an id that is none"
        drop_tables(self._place)

    def _load_library(self) -> "LibraryTokenizer":
        if self._library is None:
            from kensho.runtime.text.library_tokenizer import LibraryTokenizer

            self._library = LibraryTokenizer.load(self._folder)
        return self._library


def load_tables(
    folder: Path, digests: Mapping[str, Digest], made_here: Path | None, refused: list[str]
) -> TableTokenizer | None:
    """The first tables that fit; why others are not used is added to `refused`. Never raises."""
    for place in places(folder, digests, made_here):
        try:
            return TableTokenizer(open_tables(place, digests), folder, place)
        except TablesRefused as error:
            refused.append(f"{place.path.name}: {error.reason}")
            drop_tables(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            refused.append(f"{place.path.name}: {error.strerror}")
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
