"""What a caller asks for and gets when a model answers."""

from collections.abc import Mapping, Sequence
from typing import Literal

from kensho.base.clock import Seconds
from kensho.base.errors import UsageError
from kensho.base.structs import Struct, as_dict

Priority = Literal["critical", "high", "normal", "low"]
LoadSource = Literal["memory", "disk", "compile", "raw"]
Prompt = str | Sequence[Mapping[str, str]]
"""A question, or a conversation: messages with `role` and `content`, oldest first."""


class GenerateOptions(Struct, kw_only=True):
    """How to answer. Raises UsageError when a value makes no sense."""

    max_tokens: int = 256
    """1 to 32768; the model's context bounds it too."""
    temperature: float = 0.0
    """0 = greedy; at most 5."""
    seed: int = 0
    engine: Literal["primary", "standby"] | None = None
    """None = the primary, the standby when it fails. A named engine answers alone."""
    priority: Priority = "high"
    deadline_s: Seconds | None = None
    """For the first token, from now. None = the default of the priority."""
    is_whole: bool = False
    """True: the deadline is of the last token, for callers who wait for the whole answer."""
    is_raw_prompt: bool = False
    """True: the prompt is given to the model as it is, without its chat template."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_tokens <= 32768:
            raise UsageError(f"max_tokens cannot be {self.max_tokens}", advice="use a number from 1 to 32768")
        if not 0 <= self.temperature <= 5:
            raise UsageError(f"temperature cannot be {self.temperature}", advice="use a number from 0 to 5")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed cannot be {self.seed}", advice="use a number from 0 to 2**64 - 1")
        if self.deadline_s is not None and not 0 < self.deadline_s <= 86_400:
            raise UsageError(f"deadline cannot be {self.deadline_s} s", advice="use more than 0 s, at most a day")


class Token(Struct):
    """One token: its id and the text that became certain with it (may be empty inside a multi-byte character).

    `id` is None for text that is only certain once the last token has come: an answer cut inside a character.
    """

    id: int | None
    text: str


class AnswerRecord(Struct, kw_only=True):
    """What happened, once the answer is complete."""

    model: str
    version: str
    text: str
    token_ids: tuple[int, ...]
    load_source: LoadSource
    load_seconds: Seconds
    """From the request to a loaded engine; 0 when it was loaded already."""
    first_token_seconds: Seconds
    """From the request to the first token, loading included."""
    tokens_per_second: float
    """After the first token; 0 for answers of fewer than two tokens."""
    engine: str
    """The engine that finished the answer."""
    tier: str
    failovers: int
    gap_ms: float
    """Longest silence of a failover as the reader saw it."""
    is_fallback_model: bool = False
    reason: str = ""
    """Why this model and engine were chosen (row S7)."""
    prompt_tokens: int
    finish: Literal["stop", "length"]
    """stop = the model ended it; length = max_tokens or the end of its context did."""

    def as_json(self) -> dict[str, object]:
        """The keys of `kensho run --json`."""
        return {**as_dict(self), "token_ids": list(self.token_ids), "tokens": len(self.token_ids)}
