"""Values: small classes made of named fields, without the cost of `dataclasses`.

    class Token(Struct):
        request: int
        id: int
        text: str = ""
        tags: Mapping[str, str] = field(factory=dict)

    class Settings(Struct, kw_only=True): ...      # fields are given by name only
    class Place(Struct, frozen=False): ...         # fields may be assigned
    class File(Struct, frozen=False, eq=False): ...  # two with the same fields are still two

A Struct has slots, compares and hashes by its fields (a mutable one has no hash), prints them, and is matched by
position in a `match`. Type checkers understand it (PEP 681). Fields of a base class come first. `__post_init__` runs
last and may check.

Why not `dataclass`: it writes and compiles source text for each class, 0.31 ms of CPU; with its import that was 43 ms
of the start of every command. A Struct is made in 0.01 ms. Making an instance costs 1.7 us instead of 0.4: what is made
a million times is made of tuples (docs/adr/0007).
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar, dataclass_transform

_MISSING = object()


class Factory:
    """A default that is made anew for each instance."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], object]) -> None:
        self.make = make


def field(*, factory: Callable[[], Any]) -> Any:
    """A field whose default is the result of calling `factory`, once for each instance."""
    return Factory(factory)


def _annotations(space: dict[str, Any]) -> dict[str, object]:
    found = space.get("__annotations__")
    if found is None and (annotate := space.get("__annotate_func__")):  # Python 3.14 evaluates them when asked
        import annotationlib  # type: ignore[import-not-found]  # standard library of 3.14

        found = annotationlib.call_annotate_function(annotate, annotationlib.Format.FORWARDREF)
    return found or {}


def _is_class_variable(kind: object) -> bool:
    return kind is ClassVar or getattr(kind, "__origin__", None) is ClassVar


class _StructType(type):
    """Makes the class: its annotations become slots, their values become defaults."""

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        space: dict[str, Any],
        *,
        frozen: bool = True,
        kw_only: bool = False,
        eq: bool = True,
    ) -> "_StructType":
        own = tuple(key for key, kind in _annotations(space).items() if not _is_class_variable(kind))
        defaults: dict[str, object] = {}
        names: dict[str, None] = {}
        for base in reversed(bases):
            names |= dict.fromkeys(getattr(base, "__struct_fields__", ()))
            defaults |= getattr(base, "__struct_defaults__", {})
        inherited = tuple(names)
        names |= dict.fromkeys(own)
        defaults |= {key: space.pop(key) for key in own if key in space}
        space["__slots__"] = tuple(key for key in own if key not in inherited)
        space["__struct_fields__"] = tuple(names)
        space["__struct_defaults__"] = defaults
        space["__struct_kw_only__"] = kw_only
        space["__match_args__"] = () if kw_only else tuple(names)
        if not frozen:
            space |= {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__, "__hash__": None}
        if not eq:
            space |= {"__eq__": object.__eq__, "__hash__": object.__hash__}
        made = super().__new__(cls, name, bases, space)
        # The slots' own setters: they work on frozen instances, and faster than object.__setattr__.
        made.__struct_setters__ = tuple(getattr(made, key).__set__ for key in names)  # type: ignore[attr-defined]
        return made

    def __init__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any], **_: bool) -> None:
        super().__init__(name, bases, space)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Struct(metaclass=_StructType):
    """Base of all values. Frozen unless the class says `frozen=False`."""

    __struct_fields__: ClassVar[tuple[str, ...]]
    __struct_defaults__: ClassVar[dict[str, object]]
    __struct_setters__: ClassVar[tuple[Callable[[object, object], None], ...]]
    __struct_kw_only__: ClassVar[bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kind = type(self)
        if len(args) > (0 if kind.__struct_kw_only__ else len(kind.__struct_fields__)):
            raise TypeError(f"{kind.__name__} takes {_words(kind)}, got {len(args)} by position")
        setters = kind.__struct_setters__
        for value, put in zip(args, setters, strict=False):
            put(self, value)
        given = len(args)
        for key, put in zip(kind.__struct_fields__[given:], setters[given:], strict=True):
            value = kwargs.pop(key, _MISSING)
            if value is _MISSING:
                value = kind.__struct_defaults__.get(key, _MISSING)
                if value is _MISSING:
                    raise TypeError(f"{kind.__name__} needs {key!r}; it takes {_words(kind)}")
                if type(value) is Factory:
                    value = value.make()
            put(self, value)
        if kwargs:
            raise TypeError(f"{kind.__name__} has no {', '.join(map(repr, kwargs))}; it takes {_words(kind)}")
        self.__post_init__()

    def __post_init__(self) -> None:
        """Checks of a subclass, when every field has its value."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be assigned")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: {name!r} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash((type(self), *_values(self)))

    def __repr__(self) -> str:
        fields = ", ".join(f"{key}={getattr(self, key)!r}" for key in type(self).__struct_fields__)
        return f"{type(self).__name__}({fields})"


S = TypeVar("S", bound=Struct)


def fields(kind: type[Struct] | Struct) -> tuple[str, ...]:
    """The names of the fields, in order of declaration, those of base classes first."""
    return kind.__struct_fields__


def replace(value: S, **changes: object) -> S:
    """A copy with some fields changed. TypeError for a name that it does not have."""
    return type(value)(**(dict(zip(type(value).__struct_fields__, _values(value), strict=True)) | changes))


def as_dict(value: Struct) -> dict[str, Any]:
    """Field name -> value, at all depths: Structs in Structs, and in lists, tuples and mappings, become dicts too."""
    return {key: _plain(getattr(value, key)) for key in type(value).__struct_fields__}


def _plain(value: object) -> object:
    if isinstance(value, Struct):
        return as_dict(value)
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _values(value: Struct) -> tuple[object, ...]:
    return tuple([getattr(value, key) for key in type(value).__struct_fields__])


def _words(kind: type[Struct]) -> str:
    names: Iterable[str] = kind.__struct_fields__
    return f"{', '.join(names) or 'nothing'}{' by name' if kind.__struct_kw_only__ else ''}"
