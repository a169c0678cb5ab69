"""Requests that kill engines: after the second host that died of one it is refused. Pure; `now_s` is passed in.

A request is known by a digest of its prompt's ids and of how its tokens are chosen, so that an odd parameter does not
make a prompt suspect for everybody; nothing else of it is kept. The seed is no part of it: most callers draw a new one
each time, and would kill two hosts each time. One that was answered after all is innocent, and a person who gives a
circuit back gives all requests another chance. A host that was ended by a signal that others send (the kernel when
memory runs out, an operator) is not blamed on what it was doing.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from kensho.base.clock import Seconds
from kensho.base.errors import EngineCrashed, EngineError, EngineHung, PoisonRequest
from kensho.base.inference import Sampling

DEADLY = 2
"""Hosts that may die of one request. Issue 6: never tried a third time."""
KEPT = 256
KEPT_S: Seconds = 3600.0
"""A wrong verdict is not for ever, and a right one costs two hosts an hour. Guess."""

_SENT_BY_OTHERS = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT"})


class PoisonList:
    """The last 256 requests that killed a host, of one model."""

    def __init__(self) -> None:
        self._deaths: OrderedDict[bytes, tuple[int, Seconds]] = OrderedDict()

    def blame(self, prompt_ids: Sequence[int], sampling: Sampling, error: EngineError, now_s: Seconds) -> int:
        """A host failed with `error` while it worked on this request. How many hosts it has killed by now."""
        is_hang = isinstance(error, EngineHung)
        is_crash = isinstance(error, EngineCrashed) and error.facts.get("signal") not in _SENT_BY_OTHERS
        if not (is_hang or is_crash):
            return 0
        key = _digest(prompt_ids, sampling)
        deaths = self._known(key, now_s) + 1
        self._deaths[key] = (deaths, now_s)
        self._deaths.move_to_end(key)
        while len(self._deaths) > KEPT:
            self._deaths.popitem(last=False)
        return deaths

    def clear(self, prompt_ids: Sequence[int], sampling: Sampling) -> None:
        """It was answered."""
        if self._deaths:
            self._deaths.pop(_digest(prompt_ids, sampling), None)

    def forget(self) -> None:
        """A person has mended something: all may be tried again."""
        self._deaths.clear()

    def check(self, prompt_ids: Sequence[int], sampling: Sampling, now_s: Seconds) -> None:
        """Raises PoisonRequest for a request that has killed two hosts. 0.1 us while the list is empty."""
        if self._deaths and self._known(_digest(prompt_ids, sampling), now_s) >= DEADLY:
            raise PoisonRequest(
                f"this prompt of {len(prompt_ids)} tokens ended {DEADLY} engine processes; it is not tried again",
                advice="change the prompt, and report it: no prompt should do that; `kensho circuit ENGINE auto`"
                " lets it be tried again",
            )

    def _known(self, key: bytes, now_s: Seconds) -> int:
        deaths, at_s = self._deaths.get(key, (0, now_s))
        return deaths if now_s - at_s < KEPT_S else 0


def _digest(prompt_ids: Sequence[int], sampling: Sampling) -> bytes:
    # Words and not packed numbers: an id may be of any size until the engine refuses it.
    known_by = (tuple(prompt_ids), sampling.max_tokens, float(sampling.temperature), tuple(sampling.stop_ids))
    return hashlib.sha256(repr(known_by).encode()).digest()
