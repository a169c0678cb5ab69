"""Make the tables of a tokenizer from its tokenizer.json. Uses the `tokenizers` library and numpy; never at run time.

    data = build_tables(tokenizer_json, meta={"sources": ...})

The same file gives the same bytes. Nothing is returned that `self_check` has not compared with the library.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from zlib import crc32

from kensho.base.structs import Struct, as_dict
from kensho.runtime.tokenizer.added_tokens import AddedToken, dump_added
from kensho.runtime.tokenizer.borders import dump_borders, whole_pairs
from kensho.runtime.tokenizer.build_pattern import dump_classes, rewrite
from kensho.runtime.tokenizer.build_scan import matched_points, nfc_exceptions
from kensho.runtime.tokenizer.cuts import MAX_BITS, at_groups, at_marks, bit_of, find_groups
from kensho.runtime.tokenizer.decode import BYTE, NOTHING, SPECIAL, TEXT, Decoder
from kensho.runtime.tokenizer.encode import Encoder
from kensho.runtime.tokenizer.lookup import CANONICAL, LEFT, MAX_TOKENS, PAIR_FACTOR, PAIR_SHIFT, RIGHT
from kensho.runtime.tokenizer.plan import Plan, parse_plan
from kensho.runtime.tokenizer.recipe import Recipe, read_recipe
from kensho.runtime.tokenizer.refuse import NotCovered
from kensho.runtime.tokenizer.self_check import check_tables
from kensho.runtime.tokenizer.tables import Tables, dump_tables

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_LOAD = 0.62
"""Share of slots taken: start_path 2.1."""
_DENSE = 0.5
"""Share of the ASCII pairs that may be joined before looking for cuts costs more than it gives (guess)."""


class _Words(Struct):
    """The vocabulary as bytes."""

    tokens: dict[str, int]
    data: dict[str, bytes]
    """What each token is to the merges, and in the text."""
    encoded: list[str]
    """Tokens that text can become."""


def build_tables(tokenizer_json: bytes, meta: Mapping[str, object]) -> bytes:
    """The file's bytes; `meta` is added to its description. Raises NotCovered.

    Takes 3 to 8 s for 262k tokens, most of it in asking the library; 300 MB of memory meanwhile.
    """
    from tokenizers import Tokenizer

    document = json.loads(tokenizer_json)
    tokenizer = Tokenizer.from_buffer(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        # As the library understood it: older files leave out, or call otherwise, what newer ones say.
        found = getattr(tokenizer, part)
        document[part] = json.loads(found.__getstate__()) if found else None
    recipe = read_recipe(document)
    words = _read_words(document["model"], recipe)
    merges = _read_merges(document["model"], words, recipe)
    added = _added(document, tokenizer)
    size = 1 + max([*words.tokens.values(), *(token.id for token in added)])
    if size > min(MAX_TOKENS, 2 * len(words.tokens) + 65_536):
        raise NotCovered(f"{len(words.tokens)} tokens have ids up to {size - 1}")
    rewritten = rewrite(recipe.patterns, matched_points, nfc_exceptions() if ("nfc",) in recipe.normalizers else [])
    plan = _plan(recipe, words, merges, tokenizer, rewritten.patterns)
    texts, kinds = _texts_by_id(size, words, document, tokenizer, recipe)
    for left, right in merges:
        kinds[words.tokens[left]] |= LEFT
        kinds[words.tokens[right]] |= RIGHT
    is_bytes = recipe.symbols == "bytes"
    as_bytes = [(words.data[left], words.data[right]) for left, right in merges]
    pairs = whole_pairs(as_bytes) if is_bytes else _joined_pairs(merges)
    offsets, blob = [0], bytearray()
    for text in texts:
        blob += text
        offsets.append(len(blob))
    is_normal = [token["normalized"] for token in document.get("added_tokens", ()) if token["content"]]
    sections = {
        "offsets": _u32(offsets),
        "blob": bytes(blob),
        "kinds": bytes(kinds),
        "vocab": _vocab_slots(words, _canonical(words, document, tokenizer, recipe)),
        "merges": _merge_cells(merges, words.tokens),
        "borders": dump_borders(as_bytes) if is_bytes else b"",
        "joints": _joint_bits(pairs),
        "classes": dump_classes(rewritten.class_of),
        "added": dump_added(
            [token for token, normal in zip(added, is_normal, strict=True) if not normal],
            [token for token, normal in zip(added, is_normal, strict=True) if normal],
        ),
    }
    made = dump_tables({**meta, "plan": as_dict(plan)}, sections)
    tables = Tables(memoryview(made), "new tables")
    parsed = parse_plan(tables.meta["plan"])
    vocabulary = [token["content"] for token in document.get("added_tokens", ())] + [
        words.data[token].decode("utf-8", "replace") for token in words.encoded
    ]
    check_tables(Encoder(tables, parsed), Decoder(tables, parsed), tokenizer, vocabulary)
    return made


def _read_words(model: Mapping[str, Any], recipe: Recipe) -> _Words:
    tokens: dict[str, int] = model["vocab"]
    if len(set(tokens.values())) != len(tokens):
        raise NotCovered("two tokens have one id")
    if recipe.symbols == "chars":
        return _Words(tokens, {token: token.encode() for token in tokens}, [token for token in tokens if token])
    alphabet = {char: byte for byte, char in byte_alphabet().items()}
    data, encoded = {}, []
    for token in tokens:
        if token and all(char in alphabet for char in token):
            encoded.append(token)
            data[token] = bytes(alphabet[char] for char in token)
        else:
            data[token] = token.encode()
    return _Words(tokens, data, encoded)


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in byte-level tokenizers (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(rest)}


def _read_merges(model: Mapping[str, Any], words: _Words, recipe: Recipe) -> list[tuple[str, str]]:
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


def _added(document: Mapping[str, Any], tokenizer: "Tokenizer") -> list[AddedToken]:
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


def _plan(
    recipe: Recipe, words: _Words, merges: Sequence[tuple[str, str]], tokenizer: "Tokenizer", patterns: tuple[str, ...]
) -> Plan:
    alphabet = byte_alphabet()
    names = [alphabet[byte] if recipe.symbols == "bytes" else f"<0x{byte:02X}>" for byte in range(256)]
    if missing := [name for name in names if name not in words.tokens]:
        raise NotCovered(f"the byte token {missing[0]!r} is missing")
    first_ids, last_ids = _ids_around(tokenizer)
    pairs = _joined_pairs(merges)
    ascii_pairs = sum(left.isascii() and right.isascii() for left, right in pairs)
    if recipe.symbols == "chars":
        patterns = _cutting_patterns(recipe, pairs)
    return Plan(
        symbols=recipe.symbols,
        normalizers=recipe.normalizers,
        unicode=unicodedata.unidata_version if ("nfc",) in recipe.normalizers else "",
        space=recipe.space,
        lead=recipe.lead,
        lead_when=recipe.lead_when,
        cuts_at_joints=recipe.symbols == "chars" and ascii_pairs < _DENSE * 95 * 95,
        patterns=patterns,
        max_token_chars=max(len(data) for data in words.data.values()),
        ignores_merges=recipe.ignores_merges,
        byte_ids=tuple(words.tokens[name] for name in names),
        first_ids=first_ids,
        last_ids=last_ids,
        joining=recipe.joining,
        joined_mark=recipe.joined_mark,
        joined_space=recipe.joined_space,
        is_byte_joined=recipe.is_byte_joined,
        strips=recipe.strips,
    )


def _cutting_patterns(recipe: Recipe, pairs: set[tuple[str, str]]) -> tuple[str, ...]:
    """One pattern for texts of characters, or none where no simple one is exact."""
    if recipe.cuts_at_marks:
        return (at_marks(recipe.mark),)
    if any(left != recipe.mark == right for left, right in pairs):
        return ()
    groups = find_groups(pairs, recipe.mark)
    return (at_groups(recipe.mark, groups),) if groups or recipe.mark else ()


def _ids_around(tokenizer: "Tokenizer") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and after a text, whatever the text."""
    around = set()
    for text in ("", "a", "Hello there", "1\n\n2"):
        bare = tokenizer.encode(text, add_special_tokens=False).ids
        full = tokenizer.encode(text).ids
        # The longest text is found once at most; the empty one tells nothing about where it would be.
        places = [at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare] if bare else []
        if bare and len(places) != 1:
            raise NotCovered("a post-processor that does more than put ids around a text")
        if bare:
            around.add((tuple(full[: places[0]]), tuple(full[places[0] + len(bare) :])))
    empty = tuple(tokenizer.encode("").ids)
    if len(around) != 1 or (found := around.pop())[0] + found[1] != empty:
        raise NotCovered("a post-processor that looks at the text")
    return found


def _texts_by_id(
    size: int, words: _Words, document: Mapping[str, Any], tokenizer: "Tokenizer", recipe: Recipe
) -> tuple[list[bytes], bytearray]:
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


def _canonical(words: _Words, document: Mapping[str, Any], tokenizer: "Tokenizer", recipe: Recipe) -> set[str]:
    """Tokens that merges make of their own text."""
    from tokenizers import models

    tokens, model = words.tokens, tokenizer.model
    if recipe.ignores_merges:
        model = models.BPE(tokens, _read_merges(document["model"], words, recipe))
    tokenize = model.tokenize
    found = set()
    for token in words.encoded:
        made = tokenize(token)
        if len(made) == 1 and made[0].id == tokens[token]:
            found.add(token)
    return found


def _vocab_slots(words: _Words, canonical: set[str]) -> bytes:
    import numpy as np

    size = _slots_for(len(words.encoded))
    slots, mask = np.zeros(size, np.uint64).tolist(), size - 1
    for token in words.encoded:
        crc = crc32(words.data[token])
        at = crc & mask
        while slots[at]:
            at = (at + 1) & mask
        slots[at] = crc << 32 | (CANONICAL if token in canonical else 0) | (words.tokens[token] + 1)
    return np.array(slots, np.uint64).tobytes()


def _merge_cells(merges: Sequence[tuple[str, str]], tokens: Mapping[str, int]) -> bytes:
    import numpy as np

    size = _slots_for(len(merges))
    keys, values, mask = [0] * size, [0] * size, size - 1
    for rank, (left, right) in enumerate(merges):
        key = (tokens[left] << 24 | tokens[right]) + 1
        at = (key * PAIR_FACTOR >> PAIR_SHIFT) & mask
        while keys[at]:
            at = (at + 1) & mask
        keys[at], values[at] = key, rank << 24 | tokens[left + right]
    return np.array([keys, values], np.uint64).T.tobytes()


def _joined_pairs(merges: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(left[-1], right[0]) for left, right in merges}


def _joint_bits(pairs: set[tuple[str, str]]) -> bytes:
    """At least 32 bits for each pair, so that few places look joined that are not."""
    bits = min(MAX_BITS, max(1 << 12, 1 << (32 * len(pairs)).bit_length()))
    found = bytearray(bits // 8)
    for left, right in pairs:
        bit = bit_of(left, right, bits)
        found[bit >> 3] |= 1 << (bit & 7)
    return bytes(found)


def _slots_for(entries: int) -> int:
    size = 8
    while entries > MAX_LOAD * size:
        size *= 2
    return size


def _u32(numbers: Sequence[int]) -> bytes:
    import numpy as np

    return np.array(numbers, np.uint32).tobytes()
