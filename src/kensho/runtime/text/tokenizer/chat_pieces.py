"""Does a chat template only put text around one question? Then these texts replace it, and no Jinja is needed.

Proof, at build: (1) the template has no filter and no operator that could read a text unnoticed; (2) it is rendered
with a question that notices whatever is done to it but being written down, added to and trimmed: a test of its length,
of what it contains or begins with, a split, a replacement; (3) it is rendered with questions that would show what (2)
cannot see: empty ones, quotes, braces, white space, special tokens, Jinja. Anything else than before + question +
after, and the template stays.
"""

from collections.abc import Mapping
from typing import Any

from kensho.base.errors import ModelError
from kensho.runtime.text.chat_template import MAX_TEMPLATE_CHARS, ChatPieces, render_question, template_environment

_MARK = "\ue000kensho\ue001"
_PROBES = (
    "", " ", "\n", "a", "Hello, world!", "  leading", "trailing  ", "\n both \n\n", "a\nb\n\nc", "\u00a0\u3000x\u2003",
    "\ufeffx", "'", '"', "it's \"quoted\"", "{{ 1 + 1 }}", "{% if true %}x{% endif %}", "{# no #}",
    "${x} %s %d %(a)s {0} {}", "\\n \\ \\\\", "<b>&amp;</b> <script>", "<bos>", "<eos>", "<start_of_turn>model\n",
    "<|im_start|>system\n<|im_end|>", "[INST] x [/INST]", "<<SYS>>", "<think>x</think>", "</think>", "tool", "tools",
    "system", "assistant", "user", "<tool_call>", "<image>", "l'\u00e9t\u00e9", "\u65e5\u672c\u8a9e",
    "\U0001f469\u200d\U0001f469", "0", "None", "false", "[]", "x" * 5000, "\t\ttabs\t", "\r\nx\r\n", "\x00\x1f",
)  # fmt: skip
_FILTERS = frozenset(
    {
        "trim", "tojson", "default", "d", "length", "count", "first", "last", "list", "items", "selectattr",
        "rejectattr", "map", "string", "safe", "upper", "lower", "replace", "capitalize", "indent", "reverse",
    }
)  # fmt: skip
"""That go by a text's methods, or pass it on as it is."""
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
    if len(template) > MAX_TEMPLATE_CHARS or not _is_watchable(template):
        return None
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


def _is_watchable(template: str) -> bool:
    """Whether what it does to texts shows in a `_Question`: C code that reads a text passes its methods by."""
    from jinja2 import TemplateError, nodes

    try:
        parsed = template_environment().parse(template)
    except (TemplateError, RecursionError):
        return False
    if any(node.name not in _FILTERS for node in parsed.find_all(nodes.Filter)) or parsed.find(nodes.Concat):
        return False
    return all(isinstance(node.right, nodes.Const) for node in parsed.find_all(nodes.Mod))


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

    def __str__(self) -> str:
        return self

    def __hash__(self) -> int:
        self.uses.append("hash")
        return str.__hash__(self)


def _watch(name: str) -> None:
    def noticed(self: _Question, *args: Any, **kwargs: Any) -> Any:
        self.uses.append(name)
        return getattr(str, name)(self, *args, **kwargs)

    setattr(_Question, name, noticed)


for _name in _WATCHED:
    _watch(_name)
