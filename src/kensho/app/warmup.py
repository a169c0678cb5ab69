"""Which models to load before anybody asks (row R6): what was used when, and what follows from it. Pure.

Rules: (1) models that a person named come first, in the order of their names' list; (2) then those that were asked at
this hour of the day before, the most asked first; (3) only what fits, into memory and into the places of loaded models,
beside everything that is loaded: nothing is closed for a guess.

What was used is kept as requests by model and hour, for two days and MAX_MODELS models: some 60 kB at most.
"""

import json
from collections.abc import Collection, Mapping, Sequence

from kensho.app.tiers import IDLE_CLOSE_S
from kensho.base.clock import Seconds
from kensho.base.structs import Struct

HOUR_S: Seconds = 3600.0
DAY_HOURS = 24
KEPT_HOURS = 2 * DAY_HOURS
"""An hour of yesterday is asked for up to 25 hours later; twice the day, for a machine that was off over a night."""
LEAD_S: Seconds = 300.0
"""How long before an hour begins its models are warmed (guess: a compile, and the idle minutes that it waits for)."""
STAY_S: Seconds = HOUR_S + LEAD_S
"""How long a guess stays loaded though nobody asks for it: to the end of its hour."""
BEFORE_IDLE_S: Seconds = STAY_S - IDLE_CLOSE_S
"""So it begins to count as idle so long after it was loaded."""
MAX_MODELS = 64
_MAX_COUNT = 1_000_000_000

HourUses = Mapping[str, Mapping[int, int]]
"""model -> hour since 1970 UTC -> requests"""


class Candidate(Struct):
    """An installed model."""

    model: str
    needed_bytes: int
    """Memory that loading it takes, its compile included where there is no graph yet."""


class Room(Struct):
    """What may be taken without closing anything."""

    free_bytes: int
    places: int
    """How many more models may be loaded."""


def hour_of(at_wall_s: Seconds) -> int:
    return int(at_wall_s // HOUR_S)


def choose_warmup(
    now_wall_s: Seconds,
    named: Sequence[str],
    uses: HourUses,
    *,
    candidates: Collection[Candidate],
    loaded: Collection[str],
    room: Room,
) -> tuple[str, ...]:
    """The models to load now, in order. `candidates` are installed; what is loaded already takes no room anew.

    A model that does not fit is left out, a smaller one after it may fit.
    """
    known = {candidate.model: candidate for candidate in candidates}
    hour = hour_of(now_wall_s + LEAD_S) - DAY_HOURS
    asked = {model: counts.get(hour, 0) for model, counts in uses.items() if counts.get(hour, 0) > 0}
    ranked = sorted(asked, key=lambda model: (-asked[model], model))
    chosen: list[str] = []
    free_bytes, places = room.free_bytes, room.places
    for model in dict.fromkeys((*named, *ranked)):
        if model not in known or model in loaded:
            continue
        if places > 0 and known[model].needed_bytes <= free_bytes:
            chosen.append(model)
            free_bytes -= known[model].needed_bytes
            places -= 1
    return tuple(chosen)


def next_look_s(now_wall_s: Seconds) -> Seconds:
    """Until the next hour's models are wanted: LEAD_S before it begins."""
    return HOUR_S - (now_wall_s + LEAD_S) % HOUR_S


def add_uses(before: HourUses, counts: Mapping[str, int], now_wall_s: Seconds) -> HourUses:
    """With `counts` requests to each model in this hour. Hours too old, or in the future (a clock was set back), and
    models beyond MAX_MODELS (those asked least) are forgotten."""
    hour = hour_of(now_wall_s)
    after: dict[str, dict[int, int]] = {}
    for model in {**before, **counts}:
        kept = {at: count for at, count in before.get(model, {}).items() if hour - KEPT_HOURS < at <= hour}
        if counts.get(model, 0) > 0:
            kept[hour] = min(_MAX_COUNT, kept.get(hour, 0) + counts[model])
        if kept:
            after[model] = kept
    most = sorted(after, key=lambda model: (-sum(after[model].values()), model))[:MAX_MODELS]
    return {model: after[model] for model in most}


def dump_uses(uses: HourUses) -> str:
    return json.dumps({model: {str(hour): count for hour, count in hours.items()} for model, hours in uses.items()})


def parse_uses(text: str) -> HourUses:
    """What `dump_uses` wrote; nothing, where anything about it is odd: it is a hint. Never raises."""
    try:
        document = json.loads(text)
        uses = {
            str(model): {int(hour): int(count) for hour, count in hours.items()} for model, hours in document.items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return {}
    return {model: hours for model, hours in uses.items() if hours and all(0 < n <= _MAX_COUNT for n in hours.values())}
