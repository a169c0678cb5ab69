"""Tables for a model folder: its tokenizer, and the facts of the files beside it, tied to these files by digests."""

from pathlib import Path

import tokenizers

from kensho.base.errors import ModelError
from kensho.base.ids import digest_of
from kensho.base.structs import replace
from kensho.runtime.text.library_tokenizer import LibraryTokenizer
from kensho.runtime.text.text_facts import dump_facts, read_bounded, read_facts
from kensho.runtime.text.tokenizer.build import build_tables
from kensho.runtime.text.tokenizer.chat_pieces import find_pieces
from kensho.runtime.text.tokenizer.files import MAX_SOURCE_BYTES, source_digests
from kensho.runtime.text.tokenizer.refuse import NotCovered


def build_folder(folder: Path) -> bytes:
    """The file for the model in `folder`. Raises NotCovered, ModelError (the tokenizer itself is no good).

    Takes seconds and 600 MB for 262k tokens. The same folder gives the same bytes with the same version of Kensho,
    of Python and of the library.
    """
    tokenizer_json = read_bounded(folder / "tokenizer.json", MAX_SOURCE_BYTES)
    if tokenizer_json is None:
        raise NotCovered("there is no tokenizer.json")
    sources = source_digests(folder)
    library = LibraryTokenizer.load(folder)
    facts = read_facts(folder, library.token_to_id)
    if facts.template is not None and (pieces := find_pieces(facts.template, facts.tokens)):
        facts = replace(facts, pieces=pieces)  # a conversation still needs the template
    if source_digests(folder) != sources or digest_of(tokenizer_json) != sources["tokenizer.json"]:
        raise ModelError(f"the files of {folder.name} changed meanwhile", advice="try again when nothing writes there")
    meta = {"sources": sources, "facts": dump_facts(facts), "library": tokenizers.__version__}
    return build_tables(tokenizer_json, meta)
