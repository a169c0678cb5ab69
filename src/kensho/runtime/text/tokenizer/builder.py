"""Have tables made for an installed model, in a child that can be killed (parent side of `build_child`)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from kensho.base.clock import Clock, Seconds
from kensho.base.errors import EngineError
from kensho.base.events import Emit, TokenizerTables
from kensho.base.ids import Digest
from kensho.runtime.system.process import Child, spawn
from kensho.runtime.system.to_the_end import to_the_end
from kensho.runtime.text.tokenizer.files import count_tries, forget_tries, made_name, reason_against, sources_of

MAX_TRIES = 3
"""Builds that came to no end, such as one that the kernel killed for its memory, are not begun for ever."""
LIMIT_S: Seconds = 300.0
"""30 times what 262k tokens take on a quiet machine: at idle priority beside a busy one it may be slow."""
_REAP_S: Seconds = 5.0


class TablesBuilder:
    """`made_here`: where the tables go. `env` is the child's whole environment."""

    def __init__(self, made_here: Path, *, env: Mapping[str, str], clock: Clock, emit: Emit) -> None:
        self._made_here = made_here
        self._env = env
        self._clock = clock
        self._emit = emit

    def is_wanted(self, digests: Mapping[str, Digest]) -> bool:
        """Whether there are none yet, they can be kept, and it was not found out before that they cannot be made."""
        here = self._made_here
        if "tokenizer.json" not in digests or not os.access(here if here.exists() else here.parent, os.W_OK):
            return False
        is_settled = self._are_made(digests) or reason_against(digests, here)
        return not is_settled and count_tries(digests, here) < MAX_TRIES

    async def build(self, model: str, version: str, folder: Path, digests: Mapping[str, Digest]) -> None:
        """Make the tables, unless another process does. Raises nothing; cancelled, it leaves no process."""
        start_s = self._clock.monotonic_s()
        arguments = (str(folder), str(self._made_here), json.dumps(sources_of(digests)))
        try:
            child = spawn("kensho.runtime.text.tokenizer.build_child", arguments, pass_fds=(), env=self._env)
        except EngineError as error:
            self._tell(model, version, "failed", error.message, 0.0)
            return
        try:
            ended = await child.ended_within(LIMIT_S)
        except BaseException:
            forget_tries(digests, self._made_here)  # ended by us: it says nothing about the next one
            raise
        finally:
            await to_the_end(_end(child))
        seconds = self._clock.monotonic_s() - start_s
        if reason := reason_against(digests, self._made_here):
            self._tell(model, version, "not possible", reason, seconds)
        elif self._are_made(digests):
            self._tell(model, version, "made", f"in {seconds:.1f} s", seconds)
        elif ended is None or ended.exit_code != 0:
            why = f"{ended.reason} ({ended.last_words})" if ended else f"nothing after {LIMIT_S:g} s"
            self._tell(model, version, "failed", why, seconds)

    def _are_made(self, digests: Mapping[str, Digest]) -> bool:
        return (self._made_here / f"{made_name(digests)}.tables").exists()

    def _tell(self, model: str, version: str, outcome: str, detail: str, seconds: Seconds) -> None:
        self._emit(TokenizerTables(model=model, version=version, outcome=outcome, detail=detail, seconds=seconds))


async def _end(child: Child) -> None:
    child.kill()
    if await child.ended_within(_REAP_S) is None:
        child.reap(0)
