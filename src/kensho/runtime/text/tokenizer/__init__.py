"""Compiled tokenizer tables: the ids and texts of the `tokenizers` library, without loading it (docs/tokenizer.md)."""
