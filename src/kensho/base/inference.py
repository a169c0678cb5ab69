"""What a request for tokens is, and what an engine is, in words that runtime and resilience share.

The two slices never import each other: runtime's `EngineHost` satisfies `Engine` by shape, and so does the
scripted engine of `kensho.testing`. One conformance suite (tests/conformance/test_engine.py) runs on all of them.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from kensho.base.errors import ConfigError
from kensho.base.structs import Struct

MAX_TEMPERATURE = 5.0
MAX_STOP_IDS = 64
_U32, _I64 = 1 << 32, 1 << 63


class Sampling(Struct):
    """How tokens are chosen. The draw for the token at position p is a function of (seed, p) alone, so that a
    stream can move to another engine without carrying generator state: the accepted prefix says p.

    Raises ConfigError for what no engine takes. Checked here, once for all engines: what the sender lets pass and the
    host refuses would look like a prompt that kills hosts (tests/runtime/hosts/test_odd_sampling.py)."""

    max_tokens: int = 256
    """Upper bound of tokens to make, counted from the end of the prompt (accepted ids included). Below 2^32."""
    temperature: float = 0.0
    """0 = greedy (first arg-max). Range 0 to 5."""
    seed: int = 0
    """A signed 64-bit number."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end the stream; the stop id itself is not part of the answer. At most 64, each from 0 below 2^32."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_tokens < _U32:
            raise _refused("max_tokens", self.max_tokens, "a number from 0 below 2^32")
        if not 0 <= self.temperature <= MAX_TEMPERATURE:  # which a NaN is not either
            raise _refused("temperature", self.temperature, f"a number from 0 to {MAX_TEMPERATURE:g}")
        if not -_I64 <= self.seed < _I64:
            raise _refused("seed", self.seed, "a signed 64-bit number")
        if len(self.stop_ids) > MAX_STOP_IDS:
            raise _refused("stop_ids", f"{len(self.stop_ids)} ids", f"{MAX_STOP_IDS} at most")
        if self.stop_ids and not 0 <= min(self.stop_ids) <= max(self.stop_ids) < _U32:
            raise _refused("stop_ids", f"from {min(self.stop_ids)} to {max(self.stop_ids)}", "ids from 0 below 2^32")


def _refused(name: str, value: object, wanted: str) -> ConfigError:
    return ConfigError(f"{name} cannot be {str(value)[:60]}", advice=f"use {wanted}", param=name)


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
