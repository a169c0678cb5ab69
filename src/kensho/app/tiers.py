"""Which tier a loaded model should have, which models should go, and whether one more fits. Pure.

Rules: (1) a tier that somebody chose is kept; (2) packed is worth its second copy of the weights only for a stream of
requests, and only where memory stays free beside it; where it does not, mixed takes its place, without a copy of the
head; (3) what was taken is given back under memory pressure and when
nobody asks; (4) who has the memory keeps it on less than who wants it, so that nothing swings to and fro; (5) a model
in use or pinned is never closed; of the others the one used longest ago goes first.
"""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from kensho.base.clock import Seconds
from kensho.base.errors import NotEnoughMemory
from kensho.base.structs import Struct
from kensho.base.units import size_text
from kensho.runtime.hosts.frames import Tier
from kensho.settings import TierChoice

KEPT_MODELS = 3
"""The prototype's memory cache: LRU of 3."""
WINDOW_S: Seconds = 60.0
"""Over which the tokens of a stream are counted."""
PACK_TOKENS = 1000
"""Tokens within the window from which packed is worth it. Packing 270M costs 170 ms of CPU and saves 1.5 ms a
token (measured, see docs/graphs.md), so 110 tokens pay for it; ten times that, since the next minute may be silent."""
IDLE_MAPPED_S: Seconds = 120.0
"""Without a request for so long, the packed copy is given back (guess)."""
IDLE_CLOSE_S: Seconds = 900.0
"""Without a request for so long, the engines end; the next request loads the model anew in 0.1 s (guess)."""
RESERVE_BYTES = 128 << 20
"""What is left to the rest of the machine (guess: a small program's start)."""
HOST_BYTES = 64 << 20
"""Own memory of an engine host before its KV cache is filled. Measured, 270M, RssAnon after a short answer:
mapped 32 to 38 MB, raw 69, packed 298, which is 38 and the graph."""

COPIES: tuple[Tier, ...] = ("mixed", "packed")
"""The tiers that hold a copy of weights, which can be given back; the better one last."""

K = TypeVar("K", bound=Hashable)


class ModelSizes(Struct):
    """What decides a model's need of memory."""

    graph_bytes: int
    """Of the compiled graph: what packing copies. 0 = not compiled."""
    kv_bytes: int
    """Of the KV cache of one engine at its full context."""
    hosts: int
    """Engines that are up at once: 2 with a hot standby."""
    head_bytes: int = 0
    """Of the graph: what the mixed tier reads in place."""

    def needed_bytes(self, tier: Tier) -> int:
        """Memory that cannot be given back page by page: mapped files do not count. Only the primary is packed."""
        copied = {"mixed": self.graph_bytes - self.head_bytes, "packed": self.graph_bytes}.get(tier, 0)
        return self.hosts * (HOST_BYTES + self.kv_bytes) + copied


class TierFacts(Struct):
    """About one loaded model. `free_bytes`: what may still be taken, by the machine and by the budget."""

    current: Tier
    sizes: ModelSizes
    free_bytes: int
    recent_tokens: int
    """Answered in the last WINDOW_S."""
    idle_s: Seconds
    """Since the last request ended; 0 while one runs."""


class ModelUse(Struct, Generic[K]):
    """One loaded model, for deciding who goes."""

    key: K
    idle_s: Seconds
    is_kept: bool
    """In use, or pinned."""
    can_shrink: bool = False
    """It has a packed copy to give back, which comes first."""


def choose_tier(choice: TierChoice, facts: TierFacts) -> Tier:
    """The tier that the model should have now. Raw is only for as long as there is no compiled graph."""
    if choice != "auto":
        return choice
    sizes = facts.sizes
    if facts.current == "raw":
        return "mapped"
    if facts.current in COPIES and (facts.free_bytes < RESERVE_BYTES or facts.idle_s >= IDLE_MAPPED_S):
        return "mapped"
    if facts.recent_tokens < PACK_TOKENS:
        return facts.current
    # While engines are swapped, the old ones and the new ones are up together.
    room = facts.free_bytes - 2 * RESERVE_BYTES
    better = COPIES[COPIES.index(facts.current) + 1 :] if facts.current in COPIES else COPIES
    return next((tier for tier in reversed(better) if sizes.needed_bytes(tier) <= room), facts.current)


def models_to_close(models: Sequence[ModelUse[K]], free_bytes: int) -> list[K]:
    """Which to close, given in order of use, the longest unused first: surplus, idle for long, and one under pressure.

    Under pressure one at a time, once no packed copy is left to give back: what is freed is seen at the next look.
    """
    loose = [model for model in models if not model.is_kept]
    surplus = max(0, len(models) - KEPT_MODELS)
    chosen = [model.key for index, model in enumerate(loose) if index < surplus or model.idle_s >= IDLE_CLOSE_S]
    can_shrink = any(model.can_shrink for model in models)
    if not chosen and free_bytes < RESERVE_BYTES and loose and not can_shrink:
        chosen = [loose[0].key]
    return chosen


def check_room(model: str, tier: Tier, sizes: ModelSizes, free_bytes: int) -> None:
    """Raises NotEnoughMemory, with the numbers, if the model does not fit."""
    needed = sizes.needed_bytes(tier)
    room = max(0, free_bytes - RESERVE_BYTES)
    if needed > room:
        raise NotEnoughMemory(
            f"not enough memory for model {model!r} on the {tier} tier: need {size_text(needed)}, "
            f"{size_text(room)} may be taken",
            advice="close other programs, lower max_context, set standby to on_demand, or raise model_memory_bytes",
            needed_bytes=needed,
            room_bytes=room,
        )
