"""Which model and engine answer a request (row S7). Pure.

    step = route("dialogue", facts, tasks={"chat": ("voice-2", "dialogue")})
    # Look("dialogue"): find out about it, add it to `facts`, and ask again
    # Choice(...): it answers; `reason` says why it and no other
    # NoRoute(...): nobody can; `problems` says of each why

A name is a task, if the settings know one of that name, or else a model. A task's models are tried in their order; one
that cannot answer is replaced by the model that its publisher named for that (row D8), and by the next of the task.
Facts are asked for one by one, since finding them out may hash a gigabyte or use the network. A model that is loaded
and of whose engines none takes requests, or is being brought back, is replaced like one that cannot be loaded; if
nobody else can answer it is chosen after all, since its queue knows best how long to wait. Whether a model that is not
loaded is healthy shows when it is.
"""

from collections.abc import Iterator, Mapping, Sequence

from kensho.base.structs import Struct, replace


class EngineFacts(Struct):
    name: str
    admits: bool
    words: str = ""
    """Why it does not."""
    is_coming: bool = False
    """It does not, and is being started or proven just now."""


class Usable(Struct):
    """Installed, verified, of a kind that can be loaded, and within memory, as far as is known."""

    version: str
    engines: tuple[EngineFacts, ...] = ()
    """In order of preference; empty: it is not loaded."""
    fallback: str | None = None
    """As of Unusable; only asked for where `why_out` has words."""


class Unusable(Struct):
    problem: str
    """In words: not installed, damaged, too large for the memory ..."""
    fallback: str | None = None
    """The model that its publisher named to answer instead."""


Facts = Usable | Unusable


class Look(Struct):
    model: str


class Choice(Struct):
    model: str
    version: str
    engine: str
    """Which takes it first; another one does if that is busy or fails."""
    reason: str
    is_fallback: bool
    """Another model than the one that was asked for (the first of a task)."""


class NoRoute(Struct):
    problems: tuple[tuple[str, str], ...]
    """(model, problem), in the order in which they were tried; the first is the one that was asked for."""


Step = Look | Choice | NoRoute


def route(wanted: str, facts: Mapping[str, Facts], *, tasks: Mapping[str, Sequence[str]], engine: str | None) -> Step:
    """The next step. `engine`: the only one that the caller allows. O(models)."""
    asked = f"first of task {wanted!r}" if wanted in tasks else "asked for"
    problems: list[tuple[str, str]] = []
    out: list[tuple[str, Usable]] = []
    for model, because in _candidates(tasks.get(wanted, (wanted,)), facts):
        known = facts.get(model)
        if known is None:
            return Look(model)
        if isinstance(known, Unusable):
            problems.append((model, known.problem))
        elif problem := why_out(known, engine):
            problems.append((model, problem))
            out.append((model, known))
        else:
            return _choice(model, known, because if problems else asked, problems, engine)
    if not out:
        return NoRoute(tuple(problems))
    model, known = out[0]
    others = [(other, problem) for other, problem in problems if other != model]
    because = asked if problems[0][0] == model else "no other model can answer"
    return replace(_choice(model, known, because, others, engine), is_fallback=problems[0][0] != model)


def why_out(known: Usable, engine: str | None) -> str:
    """Why a loaded model answers nobody now, in words; empty: it does, or will within seconds. Never said where the
    caller allows one engine only, which then answers for itself."""
    engines = known.engines
    if engine is not None or not engines or any(each.admits or each.is_coming for each in engines):
        return ""
    return ", ".join(f"{each.name} {each.words}" for each in engines)


def _candidates(models: Sequence[str], facts: Mapping[str, Facts]) -> Iterator[tuple[str, str]]:
    """(model, why it is tried), each once: the models in order, after each what stands in for it."""
    seen: set[str] = set()
    for first in models:
        model: str | None = first
        because = "next of its task"
        while model is not None and model not in seen:
            seen.add(model)
            yield model, because
            known = facts.get(model)
            because = f"fallback of {model!r}"
            model = known.fallback if known else None


def _choice(model: str, known: Usable, because: str, problems: Sequence[tuple[str, str]], engine: str | None) -> Choice:
    name, why = _engine(known.engines, engine)
    reason = "; ".join([because, *(f"{other}: {problem}" for other, problem in problems)])
    return Choice(model, known.version, name, f"{reason}{why}", is_fallback=bool(problems))


def _engine(engines: Sequence[EngineFacts], only: str | None) -> tuple[str, str]:
    """The engine, and words about it if it is not the usual one."""
    if only is not None:
        return only, f"; engine {only} asked for"
    if not engines:
        return "primary", ""
    ready = next((engine for engine in engines if engine.admits), engines[0])
    skipped = [f"{engine.name} {engine.words}" for engine in engines[: engines.index(ready)]]
    return ready.name, f"; engine {ready.name}, since {', '.join(skipped)}" if skipped else ""
