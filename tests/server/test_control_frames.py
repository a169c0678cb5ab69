"""The words between a thin client and the daemon."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.server.control_frames import (
    HEADER_BYTES,
    OUT,
    decode_request,
    encode_request,
    frame,
    header,
)

ARGUMENTS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20), max_size=8
)


def test_a_frame_says_its_kind_and_length() -> None:
    data = frame(OUT, b"text")
    assert header(data) == (OUT, 4)
    assert data[HEADER_BYTES:] == b"text"


@settings(max_examples=25)
@given(ARGUMENTS, st.dictionaries(st.sampled_from(["version", "store"]), st.text("ab=/ ", max_size=9)))
def test_a_request_comes_out_as_it_went_in(argv: list[str], about: dict[str, str]) -> None:
    assert decode_request(encode_request(about, argv)) == (about, argv)


def test_arguments_that_are_not_utf8_survive() -> None:
    argv = ["run", "demo", b"caf\xe9".decode("utf-8", "surrogateescape")]
    assert decode_request(encode_request({}, argv)) == ({}, argv)


@settings(max_examples=25)
@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_refused(payload: bytes) -> None:
    try:
        about, argv = decode_request(payload)
    except ValueError:
        return
    assert len(about) + len(argv) <= len(payload) + 1


@pytest.mark.parametrize("payload", [b"version", b"version=1\0run", b"version\0\0run", b"\xff\xfe"])
def test_a_request_without_its_empty_text_or_with_half_a_fact_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode_request(payload)
