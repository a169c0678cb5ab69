"""Which cached graphs were made from the same model as another one, and what differs. Pure.

Two uses: a miss is explained by the key field that differs (a key with something volatile in it compiles for ever, and
nobody sees why), and a graph that a newer engine or compiler has replaced is removed once the new one has passed.
"""

from collections.abc import Mapping

from kensho.base.ids import GraphKey
from kensho.base.structs import Struct
from kensho.runtime.cache.header import KeyFields, differing_fields

STORM = 3
"""Graphs of one and the same content on one disk from which something must be wrong. Two are usual: an engine that was
updated, or a disk that two kinds of machines share."""
_REPLACED_BY = frozenset({"engine_version", "compiler", "recipe_version"})
_CONTENT = ("weights_digest", "config_digest", "tokenizer_digest")


class Kinship(Struct):
    """What the cache has of the same content as a key that is not there."""

    differing: tuple[str, ...]
    """Key fields in which the nearest relative differs; empty: there is no relative."""
    relatives: int

    @property
    def is_storm(self) -> bool:
        return self.relatives >= STORM


def find_kin(wanted: KeyFields, entries: Mapping[GraphKey, KeyFields]) -> Kinship:
    """The relatives of `wanted` among the entries' keys."""
    differences = [differing_fields(fields, wanted) for fields in entries.values() if _is_same_model(fields, wanted)]
    differences = [names for names in differences if names]
    return Kinship(min(differences, key=len, default=()), len(differences))


def find_replaced(new: KeyFields, entries: Mapping[GraphKey, KeyFields]) -> dict[GraphKey, tuple[str, ...]]:
    """Entries that `new` takes the place of, with what differs: only the version of what made them.

    One for other CPU features, or another context, stays: another machine or program shares the disk.
    """
    found = {key: differing_fields(fields, new) for key, fields in entries.items() if _is_same_model(fields, new)}
    return {key: names for key, names in found.items() if names and _REPLACED_BY.issuperset(names)}


def _is_same_model(one: KeyFields, other: KeyFields) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in _CONTENT)
