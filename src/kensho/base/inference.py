"""What a request for tokens is, and what an engine is, in words that runtime and resilience share.

The two slices never import each other: runtime's `EngineHost` satisfies `Engine` by shape, and so does the
scripted engine of `kensho.testing`. One conformance suite (tests/conformance/test_engine.py) runs on all of them.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from kensho.base.structs import Struct


class Sampling(Struct):
    """How tokens are chosen. The draw for the token at position p is a function of (seed, p) alone, so that a
    stream can move to another engine without carrying generator state: the accepted prefix says p."""

    max_tokens: int = 256
    """Upper bound of tokens to make, counted from the end of the prompt (accepted ids included)."""
    temperature: float = 0.0
    """0 = greedy (first arg-max). Range 0 to 5."""
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    """Ids that end the stream; the stop id itself is not part of the answer."""


class Engine(Protocol):
    """One loaded model behind one failure boundary. Methods are called from one event loop."""

    @property
    def name(self) -> str:
        """`primary`, `standby`: the name in events, records and `--engine`."""
        ...

    @property
    def is_alive(self) -> bool:
        """False once the process is known to be gone; `start` makes a new one."""
        ...

    async def start(self) -> None:
        """Bring up the host and load the model. Idempotent. Raises EngineError."""
        ...

    def generate(
        self, prompt_ids: Sequence[int], accepted_ids: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[int, None]:
        """Token ids after prompt + accepted, which are prefilled in one step. Ends at a stop id or max_tokens.

        Raises EngineError (EngineCrashed, EngineHung, WrongNumbers). Closing the generator (`aclose`) cancels the
        work in the engine within one step. One stream at a time per engine; a second waits.
        """
        ...

    async def kill(self) -> None:
        """End the process at once (SIGKILL) and reap it. Idempotent."""
        ...

    async def close(self) -> None:
        """Orderly end: nothing (process, socket, memory segment) is left behind. Idempotent."""
        ...
