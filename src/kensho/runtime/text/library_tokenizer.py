"""A tokenizer as the `tokenizers` library reads it: knows every kind, 12 ms to import, 0.5 s to load for 262k ids."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kensho.base.errors import ModelError
from kensho.runtime.text.detokenizer import Kept, Style, style_of
from kensho.runtime.text.text_facts import read_bounded, stated_vocabulary
from kensho.runtime.text.tokenizer.files import MAX_SOURCE_BYTES

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class LibraryTokenizer:
    """Immutable; safe to use from several threads. What is public here is `text.Tokens`."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        # A length written into the file would cut prompts silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        self._special = frozenset(special)
        decoder = tokenizer.decoder
        self.style: Style = style_of(json.loads(decoder.__getstate__()) if decoder else None)
        self._kinds: dict[int, Kept] = {}

    @classmethod
    def load(cls, folder: Path) -> "LibraryTokenizer":
        """Raises ModelError: there is none, it is broken, or it does not fit the model."""
        from tokenizers import Tokenizer

        data = read_bounded(folder / "tokenizer.json", MAX_SOURCE_BYTES)
        if data is None:
            raise ModelError(f"{folder.name} has no tokenizer.json", advice="export the model with its fast tokenizer")
        try:
            tokenizer = Tokenizer.from_buffer(data)
        # The library raises plain Exception.
        except Exception as error:
            raise ModelError(
                f"tokenizer.json of {folder.name} cannot be used: {str(error)[:200]}", advice="export the model again"
            ) from error
        made = cls(tokenizer)
        _check_fits(tokenizer, stated_vocabulary(folder), folder.name)
        return made

    def encode(self, text: str, *, is_whole: bool) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=is_whole).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def kind_of(self, token: int) -> Kept:
        kind = self._kinds.get(token)
        if kind is None:
            kind = self._kinds[token] = self._kind(token)
        return kind

    def token_to_id(self, text: str) -> int | None:
        return self._tokenizer.token_to_id(text)

    def _kind(self, token: int) -> Kept:
        text = self._tokenizer.id_to_token(token)
        if text is None or text in self._special:
            return "nothing"
        return "byte" if len(text) == 6 and text.startswith("<0x") and text.endswith(">") else "text"


def _check_fits(tokenizer: "Tokenizer", known: int, name: str) -> None:
    """Ordinary text must never become an id that the model lacks. Added tokens may: Gemma 3 270M has one such (for
    images), and the engine refuses a prompt that spells it out.
    """
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if not known or size <= known:
        return
    added = tokenizer.get_added_tokens_decoder()
    highest = max(
        (token for token in tokenizer.get_vocab(with_added_tokens=False).values() if token not in added), default=0
    )
    if highest >= known:
        raise ModelError(
            f"tokenizer.json of {name} has ids up to {highest}, its config.json says the model knows {known}",
            advice="export the model again, with its own tokenizer",
        )
