"""Decide in which of a model's two sequences a request computes, so that an interrupted stream keeps what it computed.

An engine is taken from a stream at a token, or between two pieces of its prefill, and the stream comes back later with
its prompt and its tokens so far. Rules: (1) whoever goes on with what a sequence holds, uses that sequence; (2) anybody
else leaves an interrupted sequence alone: it is kept aside, and they compute in a second one, which begins with a copy
of what both have in common; (3) one sequence is kept aside, the one that was interrupted last: a stream that was cut
waits before all others of its class; (4) it is given back once it was taken up again or `MAX_OTHERS` others came
instead, and before the two together need more memory than one full context where the machine has none to spare; (5) a
sequence that was not interrupted is overwritten, but for what the next request has in common with it.

Steps and prefill differ in the last bits. Who goes on therefore computes nothing in another way than it was computed.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kensho.base.structs import Struct, field

MIN_REUSED_IDS = 64
"""A shorter common beginning is computed again: it costs under 50 ms, and keeps a short request (a canary) one and the
same computation every time. But a stream that was interrupted goes on from where it was, however short."""
MAX_OTHERS = 10
"""After so many other requests an interrupted stream is not expected any more. Admission gives every tenth start to the
lowest class that waits, and a stream that was cut goes first in its class."""


class SwapModel(Protocol):
    """What is needed of `session.Session`."""

    max_context: int

    def rewind(self, position: int) -> None: ...

    def branch(self, position: int) -> None: ...

    def swap(self) -> None: ...

    def give_back(self) -> None: ...

    def has_memory(self, positions: int) -> bool: ...


class Held(Struct, frozen=False, eq=False):
    """What one sequence holds."""

    ids: list[int] = field(factory=list)
    logits: dict[int, NDArray[np.float32]] = field(factory=dict)
    """After so many ids: those that may be asked for again."""
    is_interrupted: bool = False

    def kept_for(self, ids: Sequence[int], prompt: int) -> tuple[int, bool]:
        """How many of `ids`, of which the first `prompt` are a prompt, need not be computed; and whether they go on
        with all that is held, or with all of it that was handed out. O(len(ids)).

        The last id is computed again unless the logits after it are known: they are what is asked for.
        """
        same = common_beginning(self.ids, ids)
        kept = same if same < len(ids) or same in self.logits else same - 1
        goes_on = same == len(self.ids) or same == len(ids) > prompt
        is_back = self.is_interrupted and goes_on and prompt <= same and prompt < len(ids)
        return (kept, goes_on) if kept >= MIN_REUSED_IDS or is_back else (0, False)

    def cut(self, kept: int) -> None:
        """Forget all but the first `kept` ids."""
        del self.ids[kept:]
        self.logits = {count: logits for count, logits in self.logits.items() if count <= kept}

    def copy(self, kept: int) -> "Held":
        other = Held(self.ids[:kept], self.logits)
        other.cut(kept)
        return other


class Sequences:
    """The sequence that `model` computes in, and the one that is kept aside."""

    def __init__(self, model: SwapModel) -> None:
        self.held = Held()
        self.limit = model.max_context
        """How many ids the sequence may hold; from there on `make_room`."""
        self._model = model
        self._aside: Held | None = None
        self._others = 0

    def begin(self, ids: Sequence[int], prompt: int) -> Held:
        """The sequence in which to compute `ids`, which holds those of them that need not be computed.

        `prompt`: how many of the ids are not tokens of an answer.
        """
        kept, goes_on = self.held.kept_for(ids, prompt)
        if self._aside is not None:
            kept_there, goes_on_there = self._aside.kept_for(ids, prompt)
            if goes_on_there and kept_there > kept:
                kept, goes_on = kept_there, True
                self._take_up()
        return self._use(kept, goes_on, len(ids))

    def begin_from_nothing(self, count: int) -> Held:
        """An empty sequence, for `count` ids."""
        return self._use(0, False, count)

    def make_room(self) -> bool:
        """The sequence holds `limit` ids, and is to grow. False: the context is full."""
        self._fit(min(self.limit + 1, self._model.max_context))
        return self.limit > len(self.held.ids)

    def forget(self) -> None:
        """Something failed: nothing that was computed is trusted."""
        self.held = Held()
        self._give_back()

    def _use(self, kept: int, goes_on: bool, count: int) -> Held:
        if self.held.is_interrupted and not goes_on:
            self._put_aside(kept, count)
        self._others += 1
        if self._others > MAX_OTHERS:
            self._give_back()
        self._fit(count)
        self._model.rewind(kept)
        self.held.cut(kept)
        self.held.is_interrupted = False
        return self.held

    def _take_up(self) -> None:
        """Go on in the sequence that is aside. The other one takes its place if it was interrupted too."""
        if self._aside is not None:
            self._model.swap()
            left = self.held
            self._set_aside(self._aside, left)
            if not left.is_interrupted:
                self._give_back()

    def _put_aside(self, kept: int, count: int) -> None:
        """Unless there is no memory for `count` ids beside it. Then it is overwritten, as if nobody waited for it."""
        old = self.held
        if len(old.ids) + count > self._model.max_context and not self._model.has_memory(len(old.ids)):
            return
        try:
            self._model.branch(kept)
        except MemoryError:
            self._give_back()
        else:
            self._set_aside(old.copy(kept), old)

    def _set_aside(self, here: Held, aside: Held) -> None:
        self.held, self._aside = here, aside
        self.limit = self._model.max_context - len(aside.ids)
        self._others = 0

    def _fit(self, count: int) -> None:
        """Have room for `count` ids: what a model's need of memory was counted with is one full context for both."""
        if self._aside is not None and count > self.limit:
            if self._model.has_memory(len(self._aside.ids)):
                self.limit = self._model.max_context
            else:
                self._give_back()

    def _give_back(self) -> None:
        if self._aside is not None:
            self._model.give_back()
        self._aside = None
        self.limit = self._model.max_context


def common_beginning(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids both begin with."""
    common = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        common += 1
    return common
