"""Tables for a model folder: its tokenizer, and the facts of the files beside it, tied to these files by digests."""

import hashlib
from pathlib import Path

import tokenizers

from kensho.base.errors import ModelError
from kensho.base.ids import Digest, digest_of
from kensho.base.structs import replace
from kensho.runtime.library_tokenizer import MAX_TOKENIZER_BYTES, LibraryTokenizer
from kensho.runtime.text_facts import MAX_CONFIG_BYTES, dump_facts, read_bounded, read_facts
from kensho.runtime.tokenizer.build import build_tables
from kensho.runtime.tokenizer.chat_pieces import find_pieces
from kensho.runtime.tokenizer.files import SOURCES
from kensho.runtime.tokenizer.refuse import NotCovered


def build_folder(folder: Path) -> bytes:
    """The file for the model in `folder`. Raises NotCovered, ModelError (the tokenizer itself is no good).

    Takes seconds and 300 MB for 262k tokens. The same folder gives the same bytes with the same version of Kensho,
    of Python and of the library.
    """
    read = {name: read_bounded(folder / name, _limit(name)) for name in SOURCES}
    tokenizer_json = read["tokenizer.json"]
    if tokenizer_json is None:
        raise NotCovered("there is no tokenizer.json")
    library = LibraryTokenizer.load(folder)
    facts = read_facts(folder, library.token_to_id)
    if facts.template is not None and (pieces := find_pieces(facts.template, facts.tokens)):
        facts = replace(facts, pieces=pieces)  # a conversation still needs the template
    sources: dict[str, Digest] = {name: digest_of(data) for name, data in read.items() if data is not None}
    if any(_digest(folder / name) != digest for name, digest in sources.items()):
        raise ModelError(
            f"the files of {folder.name} changed meanwhile", advice="try again when nothing writes to them"
        )
    meta = {"sources": sources, "facts": dump_facts(facts), "library": tokenizers.__version__}
    return build_tables(tokenizer_json, meta)


def _limit(name: str) -> int:
    return MAX_TOKENIZER_BYTES if name == "tokenizer.json" else MAX_CONFIG_BYTES


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
