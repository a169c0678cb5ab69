"""Which releases a pull tries for each model, best first. Pure.

Rules: a pinned model has its pinned version or nothing; else the newest release that this machine may take. Without
names all installed models are meant, and those that could not be had before; one of them that is not published any
more must not stop the others. A name that a person gave and nobody publishes is an error.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from kensho.base.errors import NotInstalled
from kensho.base.structs import Struct
from kensho.delivery.installed import ModelRow
from kensho.delivery.releases import ReleaseRef


class Candidates(Struct):
    """Releases of one model, newest first: the first one that this machine may take is the one."""

    model: str
    refs: tuple[ReleaseRef, ...]
    is_pinned: bool = False

    @property
    def is_withdrawn(self) -> bool:
        """What is installed (or was wanted) is not published any more."""
        return not self.refs


def choose(
    offered: Iterable[ReleaseRef],
    names: Sequence[str],
    *,
    rows: Mapping[str, ModelRow],
    lacking: Collection[str],
) -> list[Candidates]:
    """What to try for `names`, or for all of `rows` (installed) and `lacking` (wanted before, not installed).

    NotInstalled for a name that is not published, or if there is nothing that could be meant.
    """
    by_model: dict[str, list[ReleaseRef]] = {}
    for ref in sorted(offered, key=lambda ref: -ref.release):
        by_model.setdefault(ref.model, []).append(ref)
    models = list(dict.fromkeys(names)) or sorted({*rows, *lacking}) or (list(by_model) if len(by_model) == 1 else [])
    available = f"name one of: {', '.join(sorted(by_model)) or 'none'}"
    if not models:
        raise NotInstalled("no model is installed and none is named", advice=available)
    chosen = []
    for model in models:
        pinned = rows[model].pinned if model in rows else None
        refs = tuple(ref for ref in by_model.get(model, []) if pinned in (None, ref.version))
        if not refs and names:
            held = (
                f"version {pinned!r} of model {model!r}, to which it is pinned, is" if pinned else f"model {model!r} is"
            )
            raise NotInstalled(f"{held} not published here", advice=available)
        chosen.append(Candidates(model, refs, pinned is not None))
    return chosen
