import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import ConfigError, EngineError
from kensho.runtime.hosts.frames import MAX_TENSORS, Exchange, TensorHeader
from kensho.runtime.hosts.tensor_segment import ALIGNMENT_BYTES, MAX_SEGMENT_BYTES, TensorSegment

DTYPES = ["float16", "float32", "float64", "int8", "int32", "int64", "uint8"]
NUMBERS = st.integers(0, 2**32 - 1)


def make_pair() -> tuple[TensorSegment, TensorSegment]:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    return TensorSegment(descriptor), TensorSegment(os.dup(descriptor))


@pytest.fixture
def pair() -> Iterator[tuple[TensorSegment, TensorSegment]]:
    ours, theirs = make_pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=5), st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 99)
        ),
        max_size=4,
        unique_by=lambda item: item[0],
    )
)
def test_arrays_arrive_as_they_were(items: list[tuple[str, str, list[int], int]]) -> None:
    ours, theirs = make_pair()
    arrays = {
        name: (np.arange(np.prod(shape, dtype=int)) + at).astype(kind).reshape(shape) for name, kind, shape, at in items
    }
    headers = ours.put(arrays)
    seen = theirs.view(headers)
    back = ours.view(theirs.put(seen, after=headers))
    for name, array in arrays.items():
        for arrived in (seen[name], back[name]):
            assert arrived.dtype == array.dtype
            assert np.array_equal(arrived, array)
            assert not arrived.flags.writeable
    ours.close()
    theirs.close()


def test_an_answer_never_overwrites_the_question(pair: tuple[TensorSegment, TensorSegment]) -> None:
    ours, theirs = pair
    question = ours.put({"a": np.ones(100, np.float32), "b": np.ones((3, 3), np.int8)})
    seen = theirs.view(question)
    answer = theirs.put({"c": np.zeros(70000, np.float64)}, after=question)  # it has to grow for that
    assert seen["a"].sum() + seen["b"].sum() == 109
    assert ours.view(answer)["c"].shape == (70000,)
    assert all(header.offset % ALIGNMENT_BYTES == 0 for header in question + answer)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.builds(
            TensorHeader,
            st.text(max_size=80),
            st.sampled_from(DTYPES),
            st.lists(NUMBERS, max_size=8).map(tuple),
            NUMBERS,
        ),
        max_size=3,
    ).map(tuple)
)
def test_headers_that_lie_are_an_engine_error_and_nothing_is_read(headers: tuple[TensorHeader, ...]) -> None:
    ours, theirs = make_pair()
    ours.put({"x": np.zeros(10, np.float32)})
    size_bytes = 64 << 10
    try:
        for name, array in theirs.view(headers).items():
            header = next(header for header in headers if header.name == name)
            assert array.nbytes == 0 or header.offset + array.nbytes <= size_bytes
    except EngineError as error:
        assert error.advice
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (TensorHeader("x", "float32", (1 << 14,), 64), "65600 bytes are claimed, the memory has 65536"),
        (TensorHeader("x", "float32", (4,), 4), "out of bounds"),
        (TensorHeader("x", "float32", (1 << 25,), 0), "out of bounds"),
        (TensorHeader("x", "int8", (2**32 - 1, 2**32 - 1, 2**32 - 1, 0), 0), "wrong"),
        (TensorHeader("x", "int8", (2**31, 2**31, 2**31), 0), "out of bounds"),
    ],
    ids=["smaller than claimed", "not aligned", "too large", "empty but huge", "overflow"],
)
def test_a_segment_is_not_read_beyond_what_it_has(
    header: TensorHeader, why: str, pair: tuple[TensorSegment, TensorSegment]
) -> None:
    ours, theirs = pair
    ours.put({"x": np.zeros(10, np.float32)})
    with pytest.raises(EngineError, match=why):
        theirs.view((header,))


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros(3, np.complex64)},
        {"x": np.array(["text"])},
        {"x": np.array([object()])},
        {"x": np.zeros(3, ">f4")},
        {"x": np.zeros((1,) * 9, np.int8)},
        {"x" * 99: np.zeros(3, np.int8)},
        {str(number): np.zeros(1, np.int8) for number in range(MAX_TENSORS + 1)},
        {"x": np.broadcast_to(np.int8(0), (MAX_SEGMENT_BYTES + 1,))},
    ],
    ids=["complex", "text", "objects", "other byte order", "nine dimensions", "long name", "too many", "too large"],
)
def test_what_cannot_cross_is_the_callers_error(
    arrays: dict[str, np.ndarray], pair: tuple[TensorSegment, TensorSegment]
) -> None:
    with pytest.raises(ConfigError):
        pair[0].put(arrays)


def test_nobody_can_shrink_it_under_a_reader(pair: tuple[TensorSegment, TensorSegment]) -> None:
    ours, theirs = pair
    headers = ours.put({"x": np.arange(9)})
    seen = theirs.view(headers)["x"]
    descriptor = ours._descriptor
    assert descriptor
    for size_bytes in (0, 4096):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, size_bytes)
    assert seen.sum() == 36


def test_a_closed_segment_refuses_and_views_stay_readable(pair: tuple[TensorSegment, TensorSegment]) -> None:
    ours, theirs = pair
    headers = ours.put({"x": np.arange(9)})
    seen = theirs.view(headers)["x"]
    for side in pair:
        side.close()
        side.close()
        with pytest.raises(EngineError, match="closed"):
            side.put({"x": np.arange(9)})
    with pytest.raises(EngineError, match="closed"):
        theirs.view(headers)
    assert seen.sum() == 36


def test_headers_fit_into_a_frame_at_their_largest() -> None:
    from kensho.runtime.hosts.frames import Decoder, encode

    headers = (TensorHeader("n" * 64, "float32", (2**32 - 1,) * 8, 2**32 - 1),) * MAX_TENSORS
    assert Decoder().feed(encode(Exchange(1, "echo", headers))) == [Exchange(1, "echo", headers)]
