"""kensho.delivery.strict_json: signed bytes have one meaning, and no bytes do anything but parse or be refused."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import TrustError
from kensho.delivery.strict_json import Fields, dump, parse

LIMIT = 1 << 16


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1,"a":2}',
        b'{"a":1.5}',
        b"1e3",
        b"NaN",
        b"-Infinity",
        b"9" * 20,
        b"9" * 5000,
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"\xff\xfe1\x00",
        b"\xef\xbb\xbf1",
        b"",
        b"1 2",
        b'{"a":1}\x00',
        b" " * (LIMIT + 1),
    ],
)
def test_anything_with_two_readings_or_no_bound_is_refused(data: bytes) -> None:
    with pytest.raises(TrustError):
        parse(data, what="it", max_bytes=LIMIT)


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_trust_error(data: bytes) -> None:
    with contextlib.suppress(TrustError):
        parse(data, what="it", max_bytes=LIMIT)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3)
    ),
)


@settings(max_examples=50, deadline=None)
@given(_VALUES)
def test_dumped_values_come_back(value: object) -> None:
    assert parse(dump(value), what="it", max_bytes=LIMIT) == value


def test_dump_does_not_depend_on_the_order_of_keys() -> None:
    assert dump({"b": 1, "a": 2}) == dump({"a": 2, "b": 1}) == b'{"a":2,"b":1}'


@pytest.mark.parametrize("value", [[], None, {"a": 1}, {"a": 1, "b": 2, "c": 3}])
def test_an_object_with_a_key_too_few_or_too_many_is_refused(value: object) -> None:
    with pytest.raises(TrustError):
        Fields(value, "it", {"a", "b"})


def test_values_of_another_type_or_out_of_range_are_refused() -> None:
    fields = Fields(
        {"n": True, "t": "\ud800", "long": "é" * 9, "l": [1, 2], "f": 0}, "it", {"n", "t", "long", "l", "f"}
    )
    with pytest.raises(TrustError):
        fields.integer("n", low=0, high=9)
    with pytest.raises(TrustError):
        fields.integer("f", low=1, high=9)
    with pytest.raises(TrustError):
        fields.text("t", max_bytes=9)
    with pytest.raises(TrustError):
        fields.text("long", max_bytes=17)
    with pytest.raises(TrustError):
        fields.items("l", low=0, high=1)
    with pytest.raises(TrustError):
        fields.flag("f")
    assert fields.text("long", max_bytes=18) == "é" * 9
