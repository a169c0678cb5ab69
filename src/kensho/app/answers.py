"""What a caller asks for and gets when a model answers."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from kensho.base.clock import Seconds
from kensho.base.errors import UsageError
from kensho.base.structs import Struct, as_dict

Priority = Literal["critical", "high", "normal", "low"]
EngineName = Literal["primary", "standby"]
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
    engine: EngineName | None = None
    """None = the primary, the standby when it fails. A named engine answers alone."""
    priority: Priority = "high"
    deadline_s: Seconds | None = None
    """For the first token, from now. None = the default of the priority."""
    is_whole: bool = False
    """True: the deadline is of the last token, for callers who wait for the whole answer."""
    is_raw_prompt: bool = False
    """True: the prompt is given to the model as it is, without its chat template."""

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, _is_count(self.max_tokens, 1, 32768), "a number from 1 to 32768")
        _check("temperature", self.temperature, _is_number(self.temperature, 0, 5), "a number from 0 to 5")
        _check("seed", self.seed, _is_count(self.seed, 0, (1 << 64) - 1), "a number from 0 to 2**64 - 1")
        _check("engine", self.engine, self.engine in (None, *get_args(EngineName)), "primary or standby")
        _check("priority", self.priority, self.priority in get_args(Priority), "critical, high, normal or low")
        deadline_s = self.deadline_s
        is_deadline = deadline_s is None or (_is_number(deadline_s, 0, 86_400) and deadline_s > 0)
        _check("deadline", deadline_s, is_deadline, "more than 0 s, at most a day")


def check_prompt(prompt: object) -> None:
    """UsageError for what is neither a text nor a conversation. That it is valid text, and not too long, is checked
    where it is turned into ids."""
    if isinstance(prompt, str):
        return
    messages = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, bytes) else ()
    if not messages or not all(_is_message(message) for message in messages):
        raise UsageError(
            f"the prompt is a {type(prompt).__name__} that cannot be answered",
            advice="give a text, or messages that each have a role and a content, both of them texts",
        )


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _check(name: str, value: object, is_right: bool, wanted: str) -> None:
    if not is_right:
        raise UsageError(f"{name} cannot be {repr(value)[:80]}", advice=f"use {wanted}")


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
    """After the first token; 0 for answers too short to be measured."""
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
