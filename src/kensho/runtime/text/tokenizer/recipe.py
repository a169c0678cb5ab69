"""What a tokenizer.json asks for, if tables can do it; NotCovered with the reason if not. Pure.

Covered: BPE, byte-level behind regular expressions, or over characters with byte fallback; NFC, Replace of a text and
Prepend as normalisers; Metaspace; added tokens that match as they are; templates of ids around a text; the decoders
that belong to these. Each step is written down as `plan` has it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from kensho.base.structs import Struct
from kensho.runtime.text.tokenizer.plan import Joining, Lead, Symbols
from kensho.runtime.text.tokenizer.refuse import NotCovered

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What the library's ByteLevel cuts by when it is not told another (its RE, from GPT-2's encoder.py)."""
_HARMLESS = frozenset({"ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing"})
"""Post-processors that put ids before and after; ByteLevel changes offsets only."""


class Recipe(Struct, kw_only=True):
    symbols: Symbols
    ignores_merges: bool
    normalizers: tuple[tuple[str, ...], ...]
    space: str
    lead: str
    lead_when: Lead
    mark: str
    """The character that stands for a space in tokens; empty for none."""
    cuts_at_marks: bool
    """Before each of them: Metaspace's split."""
    patterns: tuple[str, ...]
    """As written in the file."""
    joining: Joining
    joined_mark: str
    joined_space: str
    is_byte_joined: bool
    strips: tuple[tuple[str, int], ...]


def read_recipe(document: Mapping[str, Any]) -> Recipe:
    """Raises NotCovered. `document` is a file that the library has accepted."""
    model = document["model"]
    if model.get("type") != "BPE":
        _refuse(f"the model is {model.get('type')}, not BPE")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            _refuse(f"the model has {name}")
    for token in document.get("added_tokens", ()):
        for name in ("lstrip", "rstrip", "single_word"):
            if token.get(name):
                _refuse(f"the added token {token['content'][:40]!r} has {name}")
    for step in _flatten(document.get("post_processor"), "processors"):
        if step["type"] not in _HARMLESS:
            _refuse(f"post-processor {step['type']}")
    normalizers = tuple(map(_normalizer, _flatten(document.get("normalizer"), "normalizers")))
    cutting = _cutting(_flatten(document.get("pre_tokenizer"), "pretokenizers"), normalizers)
    joining = _joining(_flatten(document.get("decoder"), "decoders"))
    if (cutting["symbols"] == "bytes") != (joining["joining"] == "bytes"):
        _refuse("its decoder is not that of its pre-tokenizer")
    ignores_merges = bool(model.get("ignore_merges"))
    if cutting["symbols"] == "chars":
        if not model.get("byte_fallback"):
            _refuse("there is no byte fallback")
        if ignores_merges:
            _refuse("ignore_merges without byte-level")
    return Recipe(ignores_merges=ignores_merges, normalizers=normalizers, **cutting, **joining)


def _normalizer(step: Mapping[str, Any]) -> tuple[str, ...]:
    match step:
        case {"type": "NFC"}:
            return ("nfc",)
        case {"type": "Prepend", "prepend": str(text)}:
            return ("prepend", text)
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return ("replace", old, new)
        case _:
            raise NotCovered(f"normaliser {step['type']}{' of a pattern' if step['type'] == 'Replace' else ''}")


def _cutting(steps: Sequence[Mapping[str, Any]], normalizers: Sequence[tuple[str, ...]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "symbols": "chars", "space": "", "lead": "", "lead_when": "never", "cuts_at_marks": False, "patterns": (),
    }  # fmt: skip
    marks = [step[2] for step in normalizers if step[0] == "replace" and step[1] == " " and len(step[2]) == 1]
    found["mark"] = marks[0] if marks else ""
    steps = [step for step in steps if not _is_without_effect(step, normalizers)]
    if not steps:
        return found
    if steps[-1]["type"] == "ByteLevel":
        return found | {"symbols": "bytes"} | _byte_level(steps)
    if len(steps) > 1 or steps[0]["type"] != "Metaspace":
        _refuse(f"pre-tokenizer {steps[0]['type']} without ByteLevel")
    step = steps[0]
    mark, when, cuts = step["replacement"], step.get("prepend_scheme", "always"), step.get("split", True)
    return found | {"space": mark, "lead": mark, "lead_when": when, "mark": mark, "cuts_at_marks": cuts}


def _is_without_effect(step: Mapping[str, Any], normalizers: Sequence[tuple[str, ...]]) -> bool:
    """Whether this Split can find nothing: the normalisers leave no text that contains what it looks for.

    Proof: after the Replace of exactly that text there is none of it, unless its own or a later step's new text, or
    characters that it brings together, make one; for a single character only the new texts could. NFC makes no ASCII
    character (Unicode Standard Annex 15: characters with an ASCII decomposition are all compositions or singletons of
    others, of which three give ASCII: U+037E, U+1FEF, U+212A).
    """
    match step:
        case {"type": "Split", "pattern": {"String": str(sought)}} if len(sought) == 1:
            replaced = [at for at, made in enumerate(normalizers) if made[0] == "replace" and made[1] == sought]
            if not replaced:
                return False
            written = [text for made in normalizers[replaced[0] :] for text in made[2 if made[0] == "replace" else 1 :]]
            is_composed = any(made[0] == "nfc" for made in normalizers[replaced[0] :])
            return not any(sought in text for text in written) and (not is_composed or sought == " ")
    return False


def _byte_level(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    patterns: list[str] = []
    for step in steps[:-1]:
        match step:
            case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if not step.get(
                "invert"
            ):
                patterns.append(pattern)
            case {"type": "Split"}:
                _refuse(f"a Split that is {step.get('behavior')}{' and inverted' if step.get('invert') else ''}")
            case _:
                _refuse(f"pre-tokenizer {step['type']} before ByteLevel")
    last = steps[-1]
    if last.get("use_regex", True):
        patterns.append(GPT2_PATTERN)
    if not patterns:
        _refuse("ByteLevel that cuts nowhere")
    if not last.get("add_prefix_space"):
        return {"patterns": tuple(patterns)}
    if len(steps) > 1:
        _refuse("ByteLevel puts a space before pieces that were cut already")
    return {"patterns": tuple(patterns), "lead": " ", "lead_when": "always"}


def _joining(steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = [step["type"] for step in steps]
    found: dict[str, Any] = {
        "joining": "bytes", "joined_mark": "", "joined_space": "", "is_byte_joined": False, "strips": (),
    }  # fmt: skip
    if kinds == ["ByteLevel"]:
        return found
    if kinds == ["Metaspace"]:
        when, mark = steps[0].get("prepend_scheme", "always"), steps[0]["replacement"]
        return found | {
            "joining": "fallback" if when == "never" else "metaspace",
            "joined_mark": mark,
            "joined_space": " ",
        }
    found["joining"] = "fallback"
    rest = list(steps)
    if rest and rest[0]["type"] == "Replace":
        match rest.pop(0):
            case {"pattern": {"String": str(old)}, "content": str(new)} if len(old) == 1:
                found |= {"joined_mark": old, "joined_space": new}
            case _:
                _refuse("a decoder that replaces a pattern")
    if rest and rest[0]["type"] == "ByteFallback":
        found["is_byte_joined"] = True
        rest.pop(0)
    if not rest or rest.pop(0)["type"] != "Fuse" or any(step["type"] != "Strip" for step in rest):
        _refuse(f"decoder {' + '.join(kinds) or 'none'}")
    if any(step.get("stop") for step in rest):
        _refuse("a decoder that drops the end of a text")
    return found | {"strips": tuple((step["content"], step["start"]) for step in rest)}


def _flatten(step: Mapping[str, Any] | None, parts: str) -> list[Mapping[str, Any]]:
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [inner for part in step[parts] for inner in _flatten(part, parts)]


def _refuse(reason: str) -> NoReturn:
    raise NotCovered(reason)
