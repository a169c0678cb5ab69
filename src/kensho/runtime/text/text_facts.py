"""What the small files beside tokenizer.json say of a model's text: special tokens, stop ids, chat template.

Read from tokenizer_config.json, chat_template.jinja, generation_config.json and config.json, all bounded; or from
compiled tables, which hold the same facts, so that a start reads none of these files (Gemma 3's have 1.2 MB).
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from kensho.base.errors import ModelError
from kensho.base.inference import MAX_STOP_IDS
from kensho.base.structs import Struct
from kensho.runtime.text.chat_template import MAX_TEMPLATE_CHARS, ChatPieces

MAX_CONFIG_BYTES = 16 << 20
"""Gemma 3's tokenizer_config.json has 1.2 MB."""
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token")


class TextFacts(Struct, kw_only=True):
    tokens: Mapping[str, str]
    """bos_token, eos_token ... as a template may write them; those that there are."""
    bos_id: int | None
    adds_bos: bool | None
    """Whether a raw prompt begins with it; None leaves that to the tokenizer."""
    stop_ids: tuple[int, ...]
    template: str | None
    """The chat template; None where there is none."""
    pieces: ChatPieces | None
    """What the template makes of a single question, without running it."""


def read_facts(folder: Path, token_to_id: Callable[[str], int | None]) -> TextFacts:
    """The facts of the model in `folder`. Raises ModelError."""
    config = read_json(folder / "tokenizer_config.json")
    generation, model = read_json(folder / "generation_config.json"), read_json(folder / "config.json")
    tokens = {name: text for name in _TOKEN_NAMES if (text := _token_text(config.get(name)))}
    adds = config.get("add_bos_token")
    return TextFacts(
        tokens=tokens,
        bos_id=token_to_id(tokens.get("bos_token", "")),
        adds_bos=adds if isinstance(adds, bool) else None,
        stop_ids=_stop_ids(
            generation.get("eos_token_id"), model.get("eos_token_id"), token_to_id(tokens.get("eos_token", ""))
        ),
        template=_read_template(folder, config),
        pieces=None,
    )


def stated_vocabulary(folder: Path) -> int:
    """How many ids config.json says the model knows; 0 where it does not say. Raises ModelError."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    stated = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return stated if type(stated) is int and stated > 0 else 0


def dump_facts(facts: TextFacts) -> dict[str, object]:
    pieces = facts.pieces
    return {
        "tokens": dict(facts.tokens),
        "bos_id": facts.bos_id,
        "adds_bos": facts.adds_bos,
        "stop_ids": list(facts.stop_ids),
        "template": facts.template,
        "pieces": [pieces.before, pieces.after, pieces.is_trimmed] if pieces else None,
    }


def parse_facts(document: object) -> TextFacts:
    """What `dump_facts` wrote. Raises ValueError."""
    match document:
        case {
            "tokens": dict(tokens),
            "bos_id": int() | None as bos_id,
            "adds_bos": bool() | None as adds_bos,
            "stop_ids": list(stop_ids),
            "template": str() | None as template,
            "pieces": [str(), str(), bool()] | None as pieces,
        } if len(stop_ids) <= MAX_STOP_IDS and all(map(_is_id, stop_ids)):
            return TextFacts(
                tokens={str(name): str(text) for name, text in tokens.items()},
                bos_id=bos_id,
                adds_bos=adds_bos,
                stop_ids=tuple(stop_ids),
                template=template,
                pieces=ChatPieces(*pieces) if pieces else None,
            )
    raise ValueError("no facts about a text")


def read_bounded(path: Path, max_bytes: int) -> bytes | None:
    """The file's bytes, None where there is none. Raises ModelError."""
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


def read_json(path: Path) -> dict[str, object]:
    """The object in the file, empty where there is none. Raises ModelError."""
    data = read_bounded(path, MAX_CONFIG_BYTES)
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
    data = read_bounded(folder / "chat_template.jinja", 4 * MAX_TEMPLATE_CHARS)
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
            if type(value) is not int or not _is_id(value):
                raise ModelError(f"eos_token_id {str(value)[:40]} is no token id", advice="export the model again")
            ids.append(value)
    unique = tuple(dict.fromkeys(ids))
    if len(unique) > MAX_STOP_IDS:
        raise ModelError(f"{len(unique)} end-of-sequence ids", advice=f"{MAX_STOP_IDS} at most are possible")
    return unique


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 32
