"""How caches are made here, and why a lookup missed."""

from collections.abc import Callable

from kensho.base.ids import GraphKey
from kensho.runtime.cache.graph_cache import GraphCache, Hit, Miss

Put = Callable[..., tuple[GraphKey, Hit]]
MakeCache = Callable[..., GraphCache]


def reason(found: Hit | Miss) -> str:
    return found.reason if isinstance(found, Miss) else "hit"
