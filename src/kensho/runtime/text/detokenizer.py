"""Text from token ids, piece by piece, without ever taking a piece back. Pure but for the given `decode`.

The pieces of a stream, put together, are exactly `decode(all ids)`, and each is valid text. What a later token could
still change is held back: an unfinished character, a run of byte tokens (one wrong byte spoils the whole run), and for
decoders whose workings are not known, everything until the end.

Cost: each token decodes a window of at most about `window` ids, not the whole answer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from kensho.base.errors import ModelError

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoders write for bytes that are no character, or not yet."""

Style = Literal["fallback", "bytes", "unknown"]
"""How a decoder joins tokens: one text each, with byte tokens in between (SentencePiece); all bytes together
(byte-level BPE); or in a way that is not known here."""

Kept = Literal["text", "byte", "nothing"]
"""What a token is to the decoder: text of its own, one byte of a run, or nothing (a special or unknown id)."""


class Detokenizer:
    """One stream. `decode` leaves out the ids that are `nothing`."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        kind_of: Callable[[int], Kept],
        style: Style,
        *,
        window: int = 48,
    ) -> None:
        self._decode = decode
        self._kind_of = kind_of
        self._style = style
        self._max_window = window
        self._window: list[int] = []
        self._shown = ""
        """The beginning of decode(window) that was handed out."""

    def push(self, token: int) -> str:
        """The text that is certain now, often empty."""
        kind = self._kind_of(token)
        if kind == "nothing":
            return ""
        self._window.append(token)
        if self._style == "unknown" or (self._style == "fallback" and kind == "byte"):
            return ""
        text = self._decode(self._window)
        certain = text.rstrip(UNFINISHED) if self._style == "bytes" else text
        piece = certain[len(self._shown) :]
        self._shown += piece
        if len(self._window) > self._max_window:
            self._move_window(token, text)
        return piece

    def finish(self) -> str:
        """The rest, once there are no more tokens."""
        rest = self._decode(self._window)[len(self._shown) :]
        self._window.clear()
        self._shown = ""
        return rest

    def _move_window(self, token: int, text: str) -> None:
        """Forget all but the last token, if it says the same at the beginning of a text as at this end of one.

        Decoders treat the first token specially (a leading space is dropped): so it must have text of its own.
        """
        alone = self._decode([token])
        if alone and UNFINISHED not in alone and text == self._shown and text.endswith(alone):
            self._window = [token]
            self._shown = alone


def style_of(decoder: Mapping[str, object] | None) -> Style:
    """The style of a decoder given as in tokenizer.json. Raises ModelError for one that cannot be used."""
    steps = _flatten(decoder)
    if any(step.get("type") == "Strip" and step.get("stop") for step in steps):
        # The library panics on a text that is shorter than what is to be dropped (tokenizers 0.23).
        raise ModelError("tokenizer.json drops characters at the end of a text", advice="export the model again")
    kinds = [step.get("type") for step in steps]
    if kinds in (["ByteLevel"], ["Metaspace"]):
        return "bytes" if kinds == ["ByteLevel"] else "fallback"
    if "Fuse" not in kinds:
        return "unknown"
    # Before Fuse each token is treated alone, after it the whole text: only dropping at its ends can be followed.
    at = kinds.index("Fuse")
    is_known = set(kinds[:at]) <= {"Replace", "ByteFallback"} and set(kinds[at + 1 :]) <= {"Strip"}
    return "fallback" if is_known else "unknown"


def _flatten(decoder: Mapping[str, object] | None) -> list[Mapping[str, object]]:
    if decoder is None:
        return []
    if decoder.get("type") != "Sequence":
        return [decoder]
    steps = decoder.get("decoders")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ModelError("tokenizer.json has no valid decoder", advice="export the model again")
    return [step for item in steps for step in _flatten(item)]
