"""Answers in the shapes of OpenAI's API: whole ones and the chunks of a stream. Pure: figures in, plain values out.

Beside the API's own keys, every whole answer and the last chunk of a stream have a `kensho` object: who answered and
how fast. A chunk without choices is legal and ignored by clients that do not know it.
"""

from collections.abc import Mapping
from typing import Literal

from kensho.app import AnswerRecord
from kensho.base.structs import Struct

Finish = Literal["stop", "length"]


class ReplyShape(Struct):
    """One answer's envelope. `is_chat` chooses between the two APIs."""

    is_chat: bool
    id: str
    created: int
    """Seconds since 1970."""
    model: str
    has_usage: bool
    """A stream ends with the counts of tokens, and every chunk before has them as null."""

    def whole(self, text: str, record: AnswerRecord, finish: Finish) -> dict[str, object]:
        """The answer to a request that is no stream."""
        message: dict[str, object] = {"text": text}
        if self.is_chat:
            message = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = {"index": 0, **message, "logprobs": None, "finish_reason": finish}
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self._envelope(kind, [choice]) | {"usage": usage(record), "kensho": kensho(record)}

    def first(self) -> list[dict[str, object]]:
        """What a stream begins with."""
        return [self._chunk({"role": "assistant", "content": ""}, None)] if self.is_chat else []

    def piece(self, text: str) -> dict[str, object]:
        """A chunk with some text."""
        return self._chunk({"content": text} if self.is_chat else text, None)

    def last(self, record: AnswerRecord, finish: Finish) -> list[dict[str, object]]:
        """What a stream ends with, before `[DONE]`."""
        chunks = [self._chunk({} if self.is_chat else "", finish)]
        if self.has_usage:
            chunks.append(self._envelope(self._kind, []) | {"usage": usage(record)})
        chunks[-1]["kensho"] = kensho(record)
        return chunks

    @property
    def _kind(self) -> str:
        return "chat.completion.chunk" if self.is_chat else "text_completion"

    def _chunk(self, content: Mapping[str, str] | str, finish: Finish | None) -> dict[str, object]:
        key = "delta" if self.is_chat else "text"
        choice: dict[str, object] = {"index": 0, key: content, "logprobs": None, "finish_reason": finish}
        chunk = self._envelope(self._kind, [choice])
        return chunk | {"usage": None} if self.has_usage else chunk

    def _envelope(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(record: AnswerRecord) -> dict[str, int]:
    """Counts of tokens; those of a stop string are among them."""
    answered = len(record.token_ids)
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": answered,
        "total_tokens": record.prompt_tokens + answered,
    }


def kensho(record: AnswerRecord) -> dict[str, object]:
    """Who answered, how, and why it was them (row S7)."""
    return {
        "model": record.model,
        "version": record.version,
        "engine": record.engine,
        "tier": record.tier,
        "failovers": record.failovers,
        "gap_ms": round(record.gap_ms, 3),
        "first_token_ms": round(record.first_token_seconds * 1000, 3),
        "tokens_per_second": round(record.tokens_per_second, 3),
        "is_fallback_model": record.is_fallback_model,
        "reason": record.reason,
    }


def model_card(name: str, installed_at_s: float, about: Mapping[str, object]) -> dict[str, object]:
    """One line of `/v1/models`: something that can be asked for by this name."""
    return {"id": name, "object": "model", "created": int(installed_at_s), "owned_by": "kensho", "kensho": about}
