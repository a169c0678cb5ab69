"""Make tokens with one session: prefill in one append, then step by step, asking before each step whether to go on.

No socket, no process: what the host does with each token is passed in. The ids that the KV cache holds are remembered,
so that a request which begins like the last one starts from there.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import ConfigError
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.sampling import check_finite, choose
from kensho.runtime.hosts.frames import DoneReason, Generate

MIN_REUSED_IDS = 64
"""A shorter common beginning is computed again: it costs under 50 ms, and keeps a short request (a canary) one and
the same computation every time. Steps and prefill differ in the last bits."""


class Model(Protocol):
    """What is needed of `session.Session`."""

    max_context: int
    vocab_size: int

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]: ...

    def rewind(self, position: int) -> None: ...


class Generator:
    """One session and what its KV cache holds. One request at a time."""

    def __init__(self, model: Model, faults: Faults) -> None:
        self._model = model
        self._faults = faults
        self._held: list[int] = []

    def run(
        self, request: Generate, *, is_cancelled: Callable[[], bool], on_token: Callable[[int], None]
    ) -> DoneReason:
        """Make the tokens after prompt + accepted and hand each to `on_token`; returns why it ended.

        `is_cancelled` is asked before every step. Raises ConfigError for ids that this model cannot take,
        EngineError (WrongNumbers) or MemoryError from the engine; the next request then starts from nothing.
        """
        ids = [*request.prompt_ids, *request.accepted_ids]
        self._check(ids)
        self._faults.begin()
        try:
            return self._steps(ids, request, is_cancelled, on_token)
        except BaseException:
            self._held.clear()
            raise

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after these ids, (vocab_size,), in one prefill from nothing: the same computation every time.

        Raises what `run` raises. The array is the caller's.
        """
        self._check(list(ids))
        self._faults.begin()
        self._held.clear()
        self._model.rewind(0)
        self._faults.before_step()
        logits = self._faults.spoil(self._model.append(ids))
        check_finite(logits, len(ids))
        self._held += ids
        return logits

    def _steps(
        self, ids: list[int], request: Generate, is_cancelled: Callable[[], bool], on_token: Callable[[int], None]
    ) -> DoneReason:
        sampling = request.sampling
        left = sampling.max_tokens - len(request.accepted_ids)
        if left <= 0:
            return "length"
        kept = reusable(self._held, ids)
        self._model.rewind(kept)
        del self._held[kept:]
        pending = ids[kept:]
        while not is_cancelled():
            self._faults.before_step()
            logits = self._faults.spoil(self._model.append(pending))
            self._held += pending
            token = choose(logits, len(self._held), sampling)
            if token in sampling.stop_ids:
                return "stop"
            on_token(token)
            left -= 1
            if left == 0:
                return "length"
            if len(self._held) == self._model.max_context:
                return "context"
            pending = [token]
        return "cancelled"

    def _check(self, ids: list[int]) -> None:
        if not ids:
            raise ConfigError("the prompt is empty", advice="give at least one token")
        if len(ids) > self._model.max_context:
            raise ConfigError(
                f"prompt of {len(ids)} tokens, the model's context has room for {self._model.max_context}",
                advice="shorten the prompt or raise max_context",
                tokens=len(ids),
                max_context=self._model.max_context,
            )
        if max(ids) >= self._model.vocab_size or min(ids) < 0:
            raise ConfigError(
                f"token ids of {min(ids)} to {max(ids)}, the model has ids from 0 to {self._model.vocab_size - 1}",
                advice="use the tokenizer that belongs to the model",
            )


def reusable(held: Sequence[int], wanted: Sequence[int]) -> int:
    """How many ids of the KV cache may stay: the common beginning, but for the last wanted id, or 0 if it is short.

    The last id is always computed: its logits are what is asked for.
    """
    common = 0
    for old, new in zip(held, wanted[:-1], strict=False):
        if old != new:
            break
        common += 1
    return common if common >= MIN_REUSED_IDS else 0
