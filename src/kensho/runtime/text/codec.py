"""Between a person's text and a model's token ids: tokenizer, chat template, stop ids.

    codec = TextCodec.load(model_folder, digests=digests, made_here=store / "graphs")
    ids = codec.prompt_ids("Bonjour")
    pieces = codec.detokenizer()

With compiled tables (`tokenizer/`) a load takes 0.3 ms and imports nothing; without, tokenizer.json is read by the
`tokenizers` library (12 ms to import, and 0.5 s of loading for a 262k vocabulary), and the files beside it. Both give
the same ids and the same text. Rules of beginning (bos) are transformers': a template writes its own; a raw prompt
gets one where the tokenizer adds one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from kensho.base.errors import ConfigError
from kensho.base.ids import Digest
from kensho.runtime.text.chat_template import render_messages, render_question
from kensho.runtime.text.detokenizer import Detokenizer, Kept, Style
from kensho.runtime.text.text_facts import TextFacts
from kensho.runtime.text.tokenizer.table_tokenizer import TableTokenizer, load_tables

MAX_PROMPT_CHARS = 1 << 20


class Tokens(Protocol):
    """A tokenizer, of whatever kind."""

    style: Style

    def encode(self, text: str, *, is_whole: bool) -> list[int]:
        """The ids; with `is_whole` those that the tokenizer puts around a text too."""

    def decode(self, ids: Sequence[int]) -> str:
        """Their text, special tokens left out."""

    def kind_of(self, token: int) -> Kept:
        """What the id is to `decode`."""


class TextCodec:
    """The text side of one model. Immutable; safe to use from several threads."""

    def __init__(self, tokens: Tokens, facts: TextFacts, *, refused: Sequence[str] = ()) -> None:
        self._tokens = tokens
        self._facts = facts
        self.stop_ids = facts.stop_ids
        """Ids that end an answer, for `Sampling`."""
        self.source: Literal["tables", "library"] = "tables" if isinstance(tokens, TableTokenizer) else "library"
        self.refused = tuple(refused)
        """Why tables that were there are not used, if any were there."""

    @classmethod
    def load(
        cls, folder: Path, *, digests: Mapping[str, Digest] | None = None, made_here: Path | None = None
    ) -> "TextCodec":
        """The codec of the model in `folder`. Raises ModelError.

        `digests` of its files, as they were verified (path -> SHA-256): without them no tables are used, since nothing
        else says that they belong to these files. `made_here`: folder of tables that this machine made.
        """
        refused: list[str] = []
        if tables := load_tables(folder, digests or {}, made_here, refused):
            return cls(tables, tables.facts, refused=refused)
        from kensho.runtime.text.library_tokenizer import LibraryTokenizer
        from kensho.runtime.text.text_facts import read_facts

        library = LibraryTokenizer.load(folder)
        return cls(library, read_facts(folder, library.token_to_id), refused=refused)

    def prompt_ids(self, prompt: str, *, is_raw: bool = False) -> list[int]:
        """The ids to prefill for a question, or with `is_raw` for the text as it is.

        A model without a chat template takes every prompt as it is. Raises ConfigError (no text, too long) and
        ModelError (its template fails).
        """
        _check_text(prompt)
        facts = self._facts
        if not is_raw and facts.pieces is not None:
            return self._tokens.encode(facts.pieces.render(prompt), is_whole=False)
        if not is_raw and facts.template is not None:
            return self._tokens.encode(render_question(facts.template, prompt, facts.tokens), is_whole=False)
        ids = self._tokens.encode(prompt, is_whole=facts.adds_bos is not False)
        if facts.adds_bos and facts.bos_id is not None and ids[:1] != [facts.bos_id]:
            ids.insert(0, facts.bos_id)
        return ids

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids to prefill for a conversation: messages with `role` and `content`, oldest first.

        One user's message is a question. Raises ConfigError for messages that the model's template does not take, and
        for several where there is no template.
        """
        if [message["role"] for message in messages] == ["user"]:
            return self.prompt_ids(messages[0]["content"])
        facts = self._facts
        if facts.template is None:
            raise ConfigError("the model has no chat template", advice="give one message of the user's")
        _check_text("".join(message["role"] + message["content"] for message in messages))
        return self._tokens.encode(render_messages(facts.template, messages, facts.tokens), is_whole=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, special tokens left out."""
        return self._tokens.decode(ids)

    def detokenizer(self, *, window: int = 48) -> Detokenizer:
        """For one stream of ids: its pieces put together are `decode` of all of them."""
        return Detokenizer(self._tokens.decode, self._tokens.kind_of, self._tokens.style, window=window)


def _check_text(text: str) -> None:
    """ConfigError for what is too long, or is no text."""
    if len(text) > MAX_PROMPT_CHARS:
        raise ConfigError(f"prompt of {len(text)} characters", advice=f"give {MAX_PROMPT_CHARS} at most")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the prompt is not valid text", advice="give it in UTF-8") from error
