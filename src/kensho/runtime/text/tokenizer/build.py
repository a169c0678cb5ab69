"""Make the tables of a tokenizer from its tokenizer.json. Uses the `tokenizers` library and numpy; never at run time.

    data = build_tables(tokenizer_json, meta={"sources": ...})

The same file gives the same bytes. Nothing is returned that `self_check` has not compared with the library.
"""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kensho.base.structs import as_dict
from kensho.runtime.text.tokenizer.added_tokens import dump_added
from kensho.runtime.text.tokenizer.borders import dump_borders, whole_pairs
from kensho.runtime.text.tokenizer.build_pattern import dump_classes, rewrite
from kensho.runtime.text.tokenizer.build_scan import matched_points, nfc_exceptions
from kensho.runtime.text.tokenizer.build_sections import joint_bits, merge_cells, u32, vocab_slots
from kensho.runtime.text.tokenizer.build_words import (
    Words,
    byte_alphabet,
    find_canonical,
    read_added,
    read_merges,
    read_words,
    texts_by_id,
)
from kensho.runtime.text.tokenizer.cuts import at_groups, at_marks, find_groups
from kensho.runtime.text.tokenizer.decode import Decoder
from kensho.runtime.text.tokenizer.encode import Encoder
from kensho.runtime.text.tokenizer.lookup import LEFT, MAX_TOKENS, RIGHT
from kensho.runtime.text.tokenizer.plan import Plan, parse_plan
from kensho.runtime.text.tokenizer.recipe import Recipe, read_recipe
from kensho.runtime.text.tokenizer.refuse import NotCovered
from kensho.runtime.text.tokenizer.self_check import check_tables
from kensho.runtime.text.tokenizer.tables import Tables, dump_tables

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_DENSE = 0.5
"""Share of the ASCII pairs that may be joined before looking for cuts costs more than it gives (guess)."""


def build_tables(tokenizer_json: bytes, meta: Mapping[str, object]) -> bytes:
    """The file's bytes; `meta` is added to its description. Raises NotCovered.

    Takes 3 to 7 s of CPU for 262k tokens, most of it in asking the library; 600 MB of memory meanwhile.
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
    words = read_words(document["model"], recipe)
    merges = read_merges(document["model"], words, recipe)
    added = read_added(document, tokenizer)
    size = 1 + max([*words.tokens.values(), *(token.id for token in added)])
    if size > min(MAX_TOKENS, 2 * len(words.tokens) + 65_536):
        raise NotCovered(f"{len(words.tokens)} tokens have ids up to {size - 1}")
    rewritten = rewrite(recipe.patterns, matched_points, nfc_exceptions() if ("nfc",) in recipe.normalizers else ())
    plan = _plan(recipe, words, merges, tokenizer, rewritten.patterns)
    texts, kinds = texts_by_id(size, words, document, tokenizer, recipe)
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
        "offsets": u32(offsets),
        "blob": bytes(blob),
        "kinds": bytes(kinds),
        "vocab": vocab_slots(words, find_canonical(words, document, tokenizer, recipe)),
        "merges": merge_cells(merges, words.tokens),
        "borders": dump_borders(as_bytes) if is_bytes else b"",
        "joints": joint_bits(pairs),
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


def _plan(
    recipe: Recipe, words: Words, merges: Sequence[tuple[str, str]], tokenizer: "Tokenizer", patterns: tuple[str, ...]
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


def _joined_pairs(merges: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
    return {(left[-1], right[0]) for left, right in merges}
