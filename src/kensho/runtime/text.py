"""Between a person's text and a model's token ids: tokenizer, chat template, stop ids.

    codec = TextCodec.load(model_folder)
    ids = codec.prompt_ids("Bonjour")
    pieces = codec.detokenizer()

Reads tokenizer.json (by the `tokenizers` library, imported on first use: 12 ms, and 0.5 s of loading for a 262k
vocabulary), tokenizer_config.json, chat_template.jinja, generation_config.json and config.json, all bounded. Rules of
beginning (bos) are transformers': a template writes its own; a raw prompt gets one where the tokenizer adds one.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from kensho.base.errors import ConfigError, ModelError
from kensho.runtime.chat_template import MAX_TEMPLATE_CHARS, render_messages, render_question
from kensho.runtime.detokenizer import Detokenizer, Kept, style_of
from kensho.runtime.frames import MAX_STOP_IDS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENIZER_BYTES = 256 << 20
"""Gemma 3's has 33 MB."""
MAX_CONFIG_BYTES = 16 << 20
"""Gemma 3's tokenizer_config.json has 1.2 MB."""
MAX_PROMPT_CHARS = 1 << 20


class TextCodec:
    """The text side of one model. Immutable; safe to use from several threads."""

    def __init__(
        self, tokenizer: "Tokenizer", config: Mapping[str, object], template: str | None, stop_ids: tuple[int, ...]
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self.stop_ids = stop_ids
        """Ids that end an answer, for `Sampling`."""
        self._tokens = {name: text for name in _TOKEN_NAMES if (text := _token_text(config.get(name)))}
        self._bos_id = tokenizer.token_to_id(self._tokens.get("bos_token", ""))
        adds = config.get("add_bos_token")
        self._adds_bos = adds if isinstance(adds, bool) else None
        special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
        self._special = frozenset(special)
        decoder = tokenizer.decoder
        self._style = style_of(json.loads(decoder.__getstate__()) if decoder else None)
        self._kind_of = cache(self._kind)

    @classmethod
    def load(cls, folder: Path) -> "TextCodec":
        """The codec of the model in `folder`. Raises ModelError."""
        from tokenizers import Tokenizer

        data = _read(folder / "tokenizer.json", MAX_TOKENIZER_BYTES)
        if data is None:
            raise ModelError(f"{folder.name} has no tokenizer.json", advice="export the model with its fast tokenizer")
        try:
            tokenizer = Tokenizer.from_buffer(data)
        # The library raises plain Exception.
        except Exception as error:
            raise ModelError(
                f"tokenizer.json of {folder.name} cannot be used: {str(error)[:200]}", advice="export the model again"
            ) from error
        # A length written into the file would cut prompts silently.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        config = _read_json(folder / "tokenizer_config.json")
        generation, model = _read_json(folder / "generation_config.json"), _read_json(folder / "config.json")
        eos = _token_text(config.get("eos_token"))
        stop_ids = _stop_ids(generation.get("eos_token_id"), model.get("eos_token_id"), tokenizer.token_to_id(eos))
        return cls(tokenizer, config, _read_template(folder, config), stop_ids)

    def prompt_ids(self, prompt: str, *, is_raw: bool = False) -> list[int]:
        """The ids to prefill for a question, or with `is_raw` for the text as it is.

        A model without a chat template takes every prompt as it is. Raises ConfigError (no text, too long) and
        ModelError (its template fails).
        """
        _check_text(prompt)
        if self._template is not None and not is_raw:
            text = render_question(self._template, prompt, self._tokens)
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        ids = list(self._tokenizer.encode(prompt, add_special_tokens=self._adds_bos is not False).ids)
        if self._adds_bos and self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)
        return ids

    def chat_ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The ids to prefill for a conversation: messages with `role` and `content`, oldest first.

        One user's message is a question. Raises ConfigError for messages that the model's template does not take, and
        for several where there is no template.
        """
        if [message["role"] for message in messages] == ["user"]:
            return self.prompt_ids(messages[0]["content"])
        if self._template is None:
            raise ConfigError("the model has no chat template", advice="give one message of the user's")
        _check_text("".join(message["role"] + message["content"] for message in messages))
        text = render_messages(self._template, messages, self._tokens)
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def detokenizer(self) -> Detokenizer:
        """For one stream of ids: its pieces put together are `decode` of all of them."""
        return Detokenizer(self.decode, self._kind_of, self._style)

    def _kind(self, token: int) -> Kept:
        text = self._tokenizer.id_to_token(token)
        if text is None or text in self._special:
            return "nothing"
        return "byte" if len(text) == 6 and text.startswith("<0x") and text.endswith(">") else "text"


def _check_text(text: str) -> None:
    """ConfigError for what is too long, or is no text."""
    if len(text) > MAX_PROMPT_CHARS:
        raise ConfigError(f"prompt of {len(text)} characters", advice=f"give {MAX_PROMPT_CHARS} at most")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError("the prompt is not valid text", advice="give it in UTF-8") from error


_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


def _read(path: Path, max_bytes: int) -> bytes | None:
    """The file's bytes, None where there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read ({error.strerror})", advice="kensho verify") from error
    if len(data) > max_bytes:
        raise ModelError(f"{path.name} is larger than {max_bytes} bytes", advice="export the model again")
    return data


def _read_json(path: Path) -> dict[str, object]:
    data = _read(path, MAX_CONFIG_BYTES)
    if data is None:
        return {}
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not valid JSON", advice="export the model again") from error
    if not isinstance(document, dict):
        raise ModelError(f"{path.name} is not a JSON object", advice="export the model again")
    return document


def _read_template(folder: Path, config: Mapping[str, object]) -> str | None:
    """From chat_template.jinja (the newer place), else tokenizer_config.json: one text, or a list with a `default`."""
    data = _read(folder / "chat_template.jinja", 4 * MAX_TEMPLATE_CHARS)
    if data is not None:
        return data.decode("utf-8", "replace")
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
        given = named.get("default")
    return given if isinstance(given, str) else None


def _token_text(given: object) -> str:
    """A special token's text: written plainly or as an object with `content`."""
    if isinstance(given, dict):
        given = given.get("content")
    return given if isinstance(given, str) else ""


def _stop_ids(*given: object) -> tuple[int, ...]:
    """All ids named as end of sequence: a model may list more in one file than in another, and any of them ends it."""
    ids: list[int] = []
    for item in given:
        values = item if isinstance(item, list) else [] if item is None else [item]
        for value in values:
            if type(value) is not int or not 0 <= value < 1 << 32:
                raise ModelError(f"eos_token_id {str(value)[:40]} is no token id", advice="export the model again")
            ids.append(value)
    unique = tuple(dict.fromkeys(ids))
    if len(unique) > MAX_STOP_IDS:
        raise ModelError(f"{len(unique)} end-of-sequence ids", advice=f"{MAX_STOP_IDS} at most are possible")
    return unique
