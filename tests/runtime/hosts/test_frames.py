import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.base.errors import ConfigError, EngineError
from kensho.base.inference import Sampling
from kensho.runtime.hosts import frames
from kensho.runtime.hosts.frames import MAX_PAYLOAD_BYTES, Decoder, Generate, encode

U32 = st.integers(0, 2**32 - 1)
IDS = st.lists(U32, max_size=20).map(tuple)
SAMPLING = st.builds(
    Sampling, U32, st.floats(0, 5), st.integers(-(2**63), 2**63 - 1), st.lists(U32, max_size=5).map(tuple)
)
ERRORS = st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.integers(-9, 9), max_size=4)
TENSORS = st.lists(
    st.builds(
        frames.TensorHeader,
        st.text(max_size=8),
        st.sampled_from(["float32", "int64", "uint8"]),
        st.lists(U32, max_size=8).map(tuple),
        U32,
    ),
    max_size=3,
).map(tuple)
MESSAGES = st.one_of(
    st.just(frames.Ping()),
    st.just(frames.Pong()),
    st.builds(frames.Load, st.text(), st.text(), st.sampled_from(["raw", "mapped", "mixed", "packed"]), U32, U32),
    st.builds(frames.Loaded, U32, st.floats(0, 1e6)),
    st.builds(Generate, U32, IDS, IDS, SAMPLING),
    st.builds(frames.Token, U32, U32),
    st.builds(frames.Done, U32, st.sampled_from(["stop", "length", "context", "cancelled"])),
    st.builds(frames.Failed, U32, ERRORS),
    st.builds(frames.Cancel, U32),
    st.builds(frames.Exchange, U32, st.sampled_from(["logits", "echo"]), TENSORS),
    st.builds(frames.Exchanged, U32, TENSORS),
    st.builds(frames.Fault, st.sampled_from(frames.FAULT_KINDS)),
)


@settings(max_examples=30, deadline=None)
@given(st.lists(MESSAGES, max_size=6), st.integers(1, 40))
def test_messages_arrive_as_sent_however_the_bytes_are_cut(messages: list[frames.Message], piece: int) -> None:
    data = b"".join(encode(message) for message in messages)
    decoder, arrived = Decoder(), []
    for at in range(0, len(data), piece):
        arrived += decoder.feed(data[at : at + piece])
    assert arrived == messages


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_the_decoder_never_crashes_on_any_bytes(pieces: list[bytes]) -> None:
    decoder = Decoder()
    for piece in pieces:
        try:
            decoder.feed(piece)
        except EngineError:
            break


@settings(max_examples=30, deadline=None)
@given(MESSAGES, st.data())
def test_a_changed_byte_is_another_message_or_an_engine_error(message: frames.Message, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    frame[data.draw(st.integers(0, len(frame) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        for arrived in Decoder().feed(bytes(frame)):
            encode(arrived)
    except EngineError:
        pass


def test_a_frame_above_the_bound_is_refused_before_its_payload_comes() -> None:
    with pytest.raises(EngineError):
        Decoder().feed((MAX_PAYLOAD_BYTES + 1).to_bytes(4, "little") + b"\x00")


@pytest.mark.parametrize(
    "request_",
    [
        Generate(1, (1,) * (MAX_PAYLOAD_BYTES // 4), (), Sampling()),
        Generate(1, (-1,), (), Sampling()),
    ],
    ids=["too long", "negative id"],
)
def test_a_request_that_does_not_fit_is_the_callers_error(request_: Generate) -> None:
    with pytest.raises(ConfigError):
        encode(request_)


def test_too_many_tensors_or_an_unknown_type_are_malformed() -> None:
    header = frames.TensorHeader("x", "float32", (1,), 0)
    for tensors in ((header,) * 17, (frames.TensorHeader("x", "object", (1,), 0),)):  # type: ignore[arg-type]
        with pytest.raises(EngineError):
            Decoder().feed(encode(frames.Exchanged(1, tensors)))


def test_a_cut_frame_is_known_as_one() -> None:
    decoder, frame = Decoder(), encode(frames.Token(1, 2))
    assert decoder.feed(frame[:7]) == []
    assert decoder.is_within
    assert decoder.feed(frame[7:]) == [frames.Token(1, 2)]
    assert not decoder.is_within
