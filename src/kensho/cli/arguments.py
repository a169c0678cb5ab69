"""The arguments of one command: declared in its module, read here, shown by `--help`. Pure.

    arguments = Arguments("kensho pin", "hold a model at a version, or let it go")
    arguments.add_argument("model", metavar="MODEL")
    arguments.add_argument("--release", action="store_true", help="hold no longer")
    values = arguments.read(["dialogue", "--release"])      # values.model, values.release

What is understood is a part of what `argparse` understands, declared in its words: that costs 6 ms of CPU before every
answer, this 0.2 (ADR 56). Options stand anywhere, `--name value` or `--name=value`, in full; after `--` nothing is one.
A word with a space in it, and a number below zero, are no options. Positional arguments that are optional come last,
and only the very last one may be many.
"""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Literal

from kensho.base.errors import UsageError
from kensho.base.structs import Struct

_TEXT_COLUMN = 28


class _Argument(Struct, kw_only=True):
    """One declared argument."""

    name: str
    dest: str
    of: Callable[[str], object]
    default: object
    shown: str
    """What its value is called."""
    nargs: str
    choices: Sequence[str]
    text: str
    is_flag: bool
    is_required: bool

    @property
    def is_option(self) -> bool:
        return self.name.startswith("-")

    @property
    def is_many(self) -> bool:
        return self.nargs in ("*", "+")

    @property
    def is_needed(self) -> bool:
        """A positional argument that takes one word at least."""
        return self.nargs not in ("?", "*")

    def value(self, word: str, command: str) -> object:
        if self.choices and word not in self.choices:
            raise _refused(f"{self.title} cannot be {word[:80]!r}: use {', '.join(self.choices)}", command)
        try:
            return self.of(word)
        except (ValueError, OverflowError):
            raise _refused(f"{self.title} cannot be {word[:80]!r}", command) from None

    @property
    def title(self) -> str:
        return self.name if self.is_option else self.shown

    @property
    def usage(self) -> str:
        """As in the first line of the help."""
        if self.is_option:
            return f"{self.name} {self.shown}"
        many = "..." if self.is_many else ""
        return f"{self.shown}{many}" if self.is_needed else f"[{self.shown}{many}]"


class Arguments:
    """Collects declarations, then reads. `add_argument` takes the words of argparse's method of that name."""

    def __init__(self, command: str, text: str) -> None:
        """`command` as it is called, `text` what it does."""
        self._command = command
        self._text = text
        self._positional: list[_Argument] = []
        self._options: dict[str, _Argument] = {}
        self._everywhere: list[str] = []

    def add_argument(
        self,
        name: str,
        *,
        type: Callable[[str], object] = str,
        default: object = None,
        metavar: str = "",
        nargs: Literal["", "?", "*", "+"] = "",
        choices: Sequence[str] = (),
        action: Literal["store", "store_true"] = "store",
        required: bool = False,
        dest: str = "",
        help: str = "",
    ) -> None:
        """An option (`--name`) or the next positional argument. `type` raises ValueError for what it does not take."""
        is_flag = action == "store_true"
        argument = _Argument(
            name=name,
            dest=dest or name.lstrip("-").replace("-", "_"),
            of=type,
            default=False if is_flag else [] if nargs in ("*", "+") else default,
            shown=metavar or (f"{{{','.join(choices)}}}" if choices else name.lstrip("-").upper()),
            nargs=nargs,
            choices=choices,
            text=help,
            is_flag=is_flag,
            is_required=required,
        )
        if argument.is_option:
            self._options[name] = argument
        else:
            self._positional.append(argument)

    def add_everywhere(self, options: Sequence[tuple[str, str, str]]) -> None:
        """The options that every command has: name, what the value is called (empty: none), help."""
        for name, metavar, text in options:
            self.add_argument(name, metavar=metavar, action="store" if metavar else "store_true", help=text)
            self._everywhere.append(name)

    def read(self, arguments: Sequence[str]) -> SimpleNamespace:
        """The values by name. Raises UsageError that says what is wrong."""
        values = SimpleNamespace(**{each.dest: each.default for each in (*self._positional, *self._options.values())})
        given: set[str] = set()
        words: list[str] = []
        rest = iter(arguments)
        for argument in rest:
            if argument == "--":
                words += rest
            elif not _is_option(argument):
                words.append(argument)
            else:
                option, value = self._option(argument, rest)
                given.add(option.name)
                setattr(values, option.dest, value)
        self._place(words, values)
        absent = [each.usage for each in self._options.values() if each.is_required and each.name not in given]
        if absent:
            raise self._refuse(f"{self._command} needs {', '.join(absent)}")
        return values

    def help_text(self) -> str:
        """What `--help` says."""
        options = [option for name, option in self._options.items() if name not in self._everywhere]
        required = "".join(f" {option.usage}" for option in options if option.is_required)
        parts = [
            f"usage: {self._command}{required} [OPTIONS]{''.join(f' {each.usage}' for each in self._positional)}\n",
            f"{self._text}\n",
        ]
        parts += [_table("arguments", [(each.shown, each.text) for each in self._positional if each.text])]
        parts += [
            _table("options", [*((_left(each), each.text) for each in options), ("-h, --help", "show this help")])
        ]
        everywhere = [self._options[name] for name in self._everywhere]
        parts += [_table("everywhere", [(_left(each), each.text) for each in everywhere])]
        return "\n".join(part for part in parts if part)

    def _option(self, argument: str, rest: Iterator[str]) -> tuple[_Argument, object]:
        name, sign, value = argument.partition("=")
        option = self._options.get(name)
        if option is None:
            raise self._refuse(f"{self._command} has no option {name[:80]!r}")
        if option.is_flag:
            if sign:
                raise self._refuse(f"{name} takes no value")
            return option, True
        if not sign:
            value = next(rest, "--")
            if _is_option(value):
                raise self._refuse(f"{name} needs a value: {option.usage}")
        return option, option.value(value, self._command)

    def _place(self, words: list[str], values: SimpleNamespace) -> None:
        for argument in self._positional:
            taken = words if argument.is_many else words[:1]
            words = words[len(taken) :]
            if argument.is_needed and not taken:
                raise self._refuse(f"{self._command} needs {argument.shown}")
            found = [argument.value(word, self._command) for word in taken]
            if argument.is_many:
                setattr(values, argument.dest, found)
            elif found:
                setattr(values, argument.dest, found[0])
        if words:
            raise self._refuse(f"{self._command} does not know what to do with {words[0][:80]!r}")

    def _refuse(self, reason: str) -> UsageError:
        return _refused(reason, self._command)


def _refused(reason: str, command: str) -> UsageError:
    return UsageError(reason, advice=f"see {command} --help")


def _is_option(argument: str) -> bool:
    return argument.startswith("-") and argument != "-" and " " not in argument and not _is_number(argument)


def _is_number(argument: str) -> bool:
    try:
        float(argument)
    except ValueError:
        return False
    return True


def _left(option: _Argument) -> str:
    return option.name if option.is_flag else option.usage


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    lines = []
    for left, text in rows:
        # A long name has its text on the next line.
        gap = " " * max(2, _TEXT_COLUMN - 2 - len(left)) if len(left) < _TEXT_COLUMN - 2 else "\n" + " " * _TEXT_COLUMN
        lines.append(f"  {left}{gap}{text}".rstrip())
    return f"{title}:\n" + "\n".join(lines) + "\n" if rows else ""
