"""Struct behaves as a frozen, slotted dataclass does."""

import pytest

from kensho.base.structs import Struct, as_dict, field, fields, replace


class Point(Struct):
    x: int
    y: int = 0
    tags: list[str] = field(factory=list)


class Named(Point, kw_only=True):
    name: str = ""


class Counter(Struct, frozen=False):
    count: int = 0


class File(Struct, frozen=False, eq=False):
    content: bytes


class Bounded(Struct):
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(self.share)


def test_fields_are_given_by_position_or_name() -> None:
    assert Point(1, 2) == Point(x=1, y=2) == Point(1, y=2)
    assert (Point(1).y, Point(1).tags) == (0, [])


def test_a_factory_makes_a_new_default_each_time() -> None:
    assert Point(1).tags is not Point(1).tags


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 2}), ((1,), {"z": 2}), ((), {"y": 1})]
)
def test_wrong_fields_are_refused(args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*args, **kwargs)


def test_kw_only_takes_nothing_by_position_and_has_the_fields_of_its_base() -> None:
    assert fields(Named) == ("x", "y", "tags", "name")
    assert Named(x=1, name="a").name == "a"
    with pytest.raises(TypeError):
        Named(1)


def test_a_frozen_struct_cannot_be_changed_and_a_mutable_one_can() -> None:
    point, counter = Point(1), Counter()
    with pytest.raises(AttributeError, match="frozen"):
        point.x = 2
    with pytest.raises(AttributeError, match="frozen"):
        del point.x
    counter.count += 1
    assert counter == Counter(1)
    with pytest.raises(AttributeError):
        counter.other = 1


def test_equal_means_same_class_and_same_fields() -> None:
    assert Point(1) != Named(x=1)
    assert len({Bounded(0.5), Bounded(0.5), Bounded(0.25)}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Counter())


def test_without_eq_two_are_two() -> None:
    one = File(b"")
    assert one == one != File(b"")
    assert len({one, File(b"")}) == 2


def test_replace_copies_checks_and_leaves_the_original() -> None:
    half = Bounded(0.5)
    assert (replace(half, share=1).share, half.share) == (1, 0.5)
    with pytest.raises(ValueError, match="2"):
        replace(half, share=2)
    with pytest.raises(TypeError):
        replace(half, part=1)


def test_a_match_takes_it_apart() -> None:
    match Point(1, 2):
        case Point(1, y=found):
            assert found == 2
        case _:
            raise AssertionError


def test_as_dict_goes_to_all_depths() -> None:
    outer = Named(x=1, tags=[], name="n")
    assert as_dict(outer) == {"x": 1, "y": 0, "tags": [], "name": "n"}


def test_it_prints_its_fields() -> None:
    assert repr(Point(1)) == "Point(x=1, y=0, tags=[])"
