"""The vocabulary and the merges of a tokenizer.json, checked and as bytes. For the build of tables."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kensho.base.structs import Struct
from kensho.runtime.text.tokenizer.added_tokens import AddedToken
from kensho.runtime.text.tokenizer.decode import BYTE, NOTHING, SPECIAL, TEXT
from kensho.runtime.text.tokenizer.recipe import Recipe
from kensho.runtime.text.tokenizer.refuse import NotCovered

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Words(Struct):
    """The vocabulary as bytes."""

    tokens: dict[str, int]
    data: dict[str, bytes]
    """What each token is to the merges, and in the text."""
    encoded: list[str]
    """Tokens that text can become."""


def read_words(model: Mapping[str, Any], recipe: Recipe) -> Words:
    """The vocabulary. Raises NotCovered."""
    tokens: dict[str, int] = model["vocab"]
    if len(set(tokens.values())) != len(tokens):
        raise NotCovered("two tokens have one id")
    if recipe.symbols == "chars":
        return Words(tokens, {token: token.encode() for token in tokens}, [token for token in tokens if token])
    alphabet = {char: byte for byte, char in byte_alphabet().items()}
    data, encoded = {}, []
    for token in tokens:
        if token and all(char in alphabet for char in token):
            encoded.append(token)
            data[token] = bytes(alphabet[char] for char in token)
        else:
            data[token] = token.encode()
    return Words(tokens, data, encoded)


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in byte-level tokenizers (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(rest)}


def read_merges(model: Mapping[str, Any], words: Words, recipe: Recipe) -> list[tuple[str, str]]:
    """By rank. Raises NotCovered for what the shortcuts of the tables would not be exact for."""
    parts = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if any(len(merge) != 2 or not all(merge) for merge in parts):
        raise NotCovered("a merge of something else than two tokens")
    merges = [(left, right) for left, right in parts]
    if len(set(merges)) != len(merges):
        raise NotCovered("a merge is there twice")
    tokens = words.tokens
    if recipe.symbols == "chars":
        byte_tokens = {f"<0x{byte:02X}>" for byte in range(256)}
        if any(left in byte_tokens or right in byte_tokens or left + right in byte_tokens for left, right in merges):
            raise NotCovered("a merge of byte tokens")
    if any(left not in tokens or right not in tokens or left + right not in tokens for left, right in merges):
        raise NotCovered("a merge of tokens that are not there")
    return merges


def read_added(document: Mapping[str, Any], tokenizer: "Tokenizer") -> list[AddedToken]:
    """As they are to be looked for: those that are normalised, in their normalised form. Raises NotCovered."""
    found = []
    for token in document.get("added_tokens", ()):
        text = token["content"]
        if not text:
            continue
        if token["normalized"] and tokenizer.normalizer:
            text = tokenizer.normalizer.normalize_str(text)
        if not text or "\0" in text:
            raise NotCovered("an added token that cannot be looked for")
        found.append(AddedToken(text, _id_of(token["content"], tokenizer)))
    return found


def _id_of(content: str, tokenizer: "Tokenizer") -> int:
    number = tokenizer.token_to_id(content)
    if number is None:
        raise NotCovered(f"the added token {content[:40]!r} has no id")
    return number


def texts_by_id(
    size: int, words: Words, document: Mapping[str, Any], tokenizer: "Tokenizer", recipe: Recipe
) -> tuple[list[bytes], bytearray]:
    """For each id its bytes in an answer, and its kind (`decode`). Raises NotCovered."""
    texts, kinds = [b""] * size, bytearray([NOTHING]) * size
    alphabet = {char: byte for byte, char in byte_alphabet().items()}
    for token, number in words.tokens.items():
        texts[number] = words.data[token]
        kinds[number] = TEXT
        if recipe.symbols == "chars" and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[number] = BYTE
    for token in document.get("added_tokens", ()):
        content = token["content"]
        if not content:
            continue
        number = _id_of(content, tokenizer)
        if words.tokens.get(content, number) != number or (content not in words.tokens and kinds[number] != NOTHING):
            raise NotCovered(f"the added token {content[:40]!r} has the id of another")
        is_bytes = recipe.symbols == "bytes" and all(char in alphabet for char in content)
        texts[number] = bytes(alphabet[char] for char in content) if is_bytes else content.encode()
        kinds[number] = SPECIAL if token["special"] else TEXT
    return texts, kinds


def find_canonical(words: Words, document: Mapping[str, Any], tokenizer: "Tokenizer", recipe: Recipe) -> set[str]:
    """Tokens that merges make of their own text."""
    from tokenizers import models

    tokens, model = words.tokens, tokenizer.model
    if recipe.ignores_merges:
        model = models.BPE(tokens, read_merges(document["model"], words, recipe))
    tokenize = model.tokenize
    found = set()
    for token in words.encoded:
        made = tokenize(token)
        if len(made) == 1 and made[0].id == tokens[token]:
            found.add(token)
    return found
