"""Models that cannot answer here though they are installed and whole: none of their engines may take a request.

Asked of the circuits of what is loaded, and of what the store remembers of everything else.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kensho.app.remembered import ENGINES, giving_back, look_at_circuits
from kensho.app.status import EnginesOut

if TYPE_CHECKING:
    from kensho.app.serving import Serving

_BY_ITSELF = "it is tried again by itself"


def engines_out(
    store: Path, serving: "Serving | None", *, fallback_of: Callable[[str], str | None]
) -> dict[str, EnginesOut]:
    """By model. Empty, and cheap, on a healthy machine: one stat. May be called from any thread."""
    found = _of_loaded(serving) if serving else {}
    loaded = {place.installed.model for place in serving.loaded()} if serving else set()
    words: dict[str, dict[str, str]] = defaultdict(dict)
    for circuit in look_at_circuits(store):
        if circuit.is_off and circuit.model not in loaded:
            words[circuit.model][circuit.engine] = f"{circuit.engine} is {circuit.state} ({circuit.reason})"
    for model, engines in words.items():
        if set(ENGINES) <= set(engines):
            found[model] = (", ".join(engines.values()), giving_back(model, ENGINES[0]))
    out = {}
    for model, (why, ends) in found.items():
        fallback = fallback_of(model)
        out[model] = EnginesOut(why, ends, f"model {fallback} answers" if fallback else "")
    return out


def _of_loaded(serving: "Serving") -> dict[str, tuple[str, str]]:
    from kensho.app.routing import engine_facts
    from kensho.resilience.router import Usable, why_out

    found = {}
    for place in serving.loaded():
        served, model = place.loaded.served, place.installed.model
        why = why_out(Usable(place.installed.version, engine_facts(served)), None)
        if why:
            returns = any(seen.back_in_s is not None for seen in served.scheduler.circuits().values())
            found[model] = (why, _BY_ITSELF if returns else giving_back(model, ENGINES[0]))
    return found
