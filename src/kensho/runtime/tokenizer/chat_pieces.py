"""Does a chat template only put text around one question? Then these texts replace it, and no Jinja is needed.

Proof, at build: (1) the template is rendered with a question that notices whatever is done to it but being written
down and trimmed: a test of its length, of what it contains or begins with, a split, a replacement; (2) it is rendered
with questions that would show what (1) cannot see: empty ones, quotes, braces, white space, special tokens, Jinja.
Anything else than before + question + after, and the template stays.
"""

from collections.abc import Mapping
from typing import Any

from kensho.base.errors import ModelError
from kensho.runtime.chat_template import ChatPieces, render_question

_MARK = "\ue000kensho\ue001"
_PROBES = (
    "", " ", "\n", "a", "Hello, world!", "  leading", "trailing  ", "\n both \n\n", "a\nb\n\nc", "\u00a0\u3000x\u2003",
    "\ufeffx", "'", '"', "it's \"quoted\"", "{{ 1 + 1 }}", "{% if true %}x{% endif %}", "{# no #}",
    "${x} %s %d %(a)s {0} {}", "\\n \\ \\\\", "<b>&amp;</b> <script>", "<bos>", "<eos>", "<start_of_turn>model\n",
    "<|im_start|>system\n<|im_end|>", "[INST] x [/INST]", "<<SYS>>", "<think>x</think>", "</think>", "tool", "tools",
    "system", "assistant", "user", "<tool_call>", "<image>", "l'\u00e9t\u00e9", "\u65e5\u672c\u8a9e",
    "\U0001f469\u200d\U0001f469", "0", "None", "false", "[]", "x" * 5000, "\t\ttabs\t", "\r\nx\r\n", "\x00\x1f",
)  # fmt: skip
_WATCHED = (
    "capitalize", "casefold", "center", "count", "encode", "endswith", "expandtabs", "find", "format", "format_map",
    "index", "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric",
    "isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "swapcase", "title", "translate", "upper", "zfill", "__len__", "__contains__", "__getitem__",
    "__iter__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__mul__", "__rmul__", "__mod__",
)  # fmt: skip


def find_pieces(template: str, tokens: Mapping[str, str]) -> ChatPieces | None:
    """The texts around the question, None where the template does more, or fails."""
    try:
        watched = _Question(_MARK)
        text = render_question(template, watched, tokens)
        before, mark, after = text.partition(_MARK)
        if not mark or _MARK in after or watched.uses:
            return None
        pieces = ChatPieces(before, after, render_question(template, f" {_MARK} ", tokens) == text)
        is_proven = all(render_question(template, probe, tokens) == pieces.render(probe) for probe in _PROBES)
    except ModelError:
        return None
    return pieces if is_proven else None


class _Question(str):
    """Says what was done to it, and passes that on to what is made of it by adding and trimming."""

    uses: list[str]

    def __new__(cls, text: str, uses: list[str] | None = None) -> "_Question":
        made = super().__new__(cls, text)
        made.uses = [] if uses is None else uses
        return made

    def strip(self, chars: str | None = None, /) -> "_Question":
        if chars is not None:
            self.uses.append("strip")
        return _Question(str(super().strip(chars)), self.uses)

    def __add__(self, other: str, /) -> "_Question":
        return _Question(str.__add__(self, other), self.uses)

    def __radd__(self, other: str, /) -> "_Question":
        return _Question(str.__add__(other, self), self.uses)

    def __hash__(self) -> int:
        return str.__hash__(self)


def _watch(name: str) -> None:
    def noticed(self: _Question, *args: Any, **kwargs: Any) -> Any:
        self.uses.append(name)
        return getattr(str, name)(self, *args, **kwargs)

    setattr(_Question, name, noticed)


for _name in _WATCHED:
    _watch(_name)
