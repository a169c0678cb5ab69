"""Make tokens with one session: a prefill in pieces, then step by step, asking before each whether to go on.

No socket, no process: what the host does with each token is passed in. The ids that the KV cache holds are remembered,
so that a request which begins like the last one starts from there, and one that was interrupted goes on where it was
(`sequences`).
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kensho.base.errors import ConfigError
from kensho.runtime.engine.faults import Faults
from kensho.runtime.engine.sampling import check_finite, choose
from kensho.runtime.engine.sequences import Held, Sequences, SwapModel
from kensho.runtime.hosts.frames import DoneReason, Generate


class Model(SwapModel, Protocol):
    """What is needed of `session.Session`."""

    vocab_size: int

    @property
    def piece_tokens(self) -> int: ...

    def append(self, ids: Sequence[int]) -> NDArray[np.float32]: ...


class Generator:
    """One session and what its KV caches hold. One request at a time."""

    def __init__(self, model: Model, faults: Faults) -> None:
        self._model = model
        self._faults = faults
        self._sequences = Sequences(model)

    def run(
        self, request: Generate, *, is_cancelled: Callable[[], bool], on_token: Callable[[int], None]
    ) -> DoneReason:
        """Make the tokens after prompt + accepted and hand each to `on_token`; returns why it ended.

        `is_cancelled` is asked before every step: a token, or `piece_tokens` ids of the prefill. What was computed by
        then stays for the request that goes on with it, which gets the same bits as without the interruption. Raises
        ConfigError for ids that this model cannot take, EngineError (WrongNumbers) or MemoryError from the engine;
        all requests after that start from nothing.
        """
        ids = [*request.prompt_ids, *request.accepted_ids]
        self._check(ids)
        self._faults.begin()
        try:
            return self._answer(ids, request, is_cancelled, on_token)
        except BaseException:
            self._sequences.forget()
            raise

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after these ids, (vocab_size,), in one prefill from nothing: the same computation every time.

        Raises what `run` raises. The array is the caller's.
        """
        self._check(list(ids))
        self._faults.begin()
        try:
            held = self._sequences.begin_from_nothing(len(ids))
            self._faults.before_step()
            logits = self._faults.spoil(self._model.append(ids))
            check_finite(logits, len(ids))
        except BaseException:
            self._sequences.forget()
            raise
        held.ids += ids
        return logits

    def _answer(
        self, ids: list[int], request: Generate, is_cancelled: Callable[[], bool], on_token: Callable[[int], None]
    ) -> DoneReason:
        sampling = request.sampling
        left = sampling.max_tokens - len(request.accepted_ids)
        if left <= 0:
            return "length"
        held = self._sequences.begin(ids, len(request.prompt_ids))
        logits = self._prefill(held, ids, is_cancelled)
        while logits is not None:
            token = choose(self._faults.spoil(logits), len(held.ids), sampling)
            if token in sampling.stop_ids:
                return "stop"
            on_token(token)
            left -= 1
            if left == 0:
                return "length"
            if len(held.ids) == self._sequences.limit and not self._sequences.make_room():
                return "context"
            if is_cancelled():
                held.logits[len(held.ids)] = logits
                break
            self._faults.before_step()
            logits = self._model.append([token])
            held.ids.append(token)
        held.is_interrupted = bool(held.ids)
        return "cancelled"

    def _prefill(self, held: Held, ids: list[int], is_cancelled: Callable[[], bool]) -> NDArray[np.float32] | None:
        """The logits after `ids`; None: cancelled on the way, and what was computed is held."""
        size = self._model.piece_tokens
        while not is_cancelled():
            self._faults.before_step()
            begin = len(held.ids)
            if begin < len(ids):
                piece = ids[begin : begin + size]
                held.logits = {begin + len(piece): self._model.append(piece)}
                held.ids += piece
            if len(held.ids) == len(ids):
                return held.logits[len(ids)]
        return None

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
