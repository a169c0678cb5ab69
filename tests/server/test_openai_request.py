"""Bodies of OpenAI's API: what is understood, what is refused by name, what is ignored."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.server.openai_errors import BadRequest
from kensho.server.openai_request import MAX_TOKENS, Asked, parse_chat, parse_completion

ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(headers: dict[str, str] | None = None, **fields: object) -> Asked:
    return parse_chat(json.dumps(ASKED | fields).encode(), headers or {})


def test_the_least_request_has_sensible_defaults() -> None:
    asked = chat()
    assert (asked.model, asked.prompt) == ("m", [{"role": "user", "content": "hi"}])
    assert (asked.is_stream, asked.has_usage, asked.stops, asked.seed) == (False, False, (), None)
    assert (asked.max_tokens, asked.temperature) == (MAX_TOKENS, 0.0)
    assert (asked.priority, asked.deadline_s) == ("normal", None)


def test_every_field_that_is_known_is_used() -> None:
    asked = chat(
        stream=True, stream_options={"include_usage": True}, max_tokens=5, temperature=1, seed=-3, stop="x",
        priority="low", deadline_ms=1500,
    )  # fmt: skip
    assert (asked.is_stream, asked.has_usage, asked.max_tokens, asked.temperature) == (True, True, 5, 1.0)
    assert (asked.seed, asked.stops, asked.priority, asked.deadline_s) == (-3, ("x",), "low", 1.5)
    assert chat(max_completion_tokens=7, max_tokens=5).max_tokens == 7
    assert chat(max_tokens=10**9).max_tokens == MAX_TOKENS
    assert chat(stop=["a", "b"]).stops == ("a", "b")


def test_headers_come_before_fields() -> None:
    asked = chat({"x-kensho-priority": "HIGH", "x-kensho-deadline-ms": "250"}, priority="low", deadline_ms=9)
    assert (asked.priority, asked.deadline_s) == ("high", 0.25)


def test_unknown_fields_and_nulls_are_ignored() -> None:
    nothing = dict.fromkeys(["n", "stop", "stream", "max_tokens", "temperature", "seed", "tools", "logprobs"])
    assert chat(user="me", top_p=0.9, metadata={"a": [1]}, tool_choice="none", **nothing) == chat()
    assert chat(n=1, tools=[], logprobs=False, response_format={"type": "text"}, modalities=["text"]) == chat()


def test_content_may_come_in_parts_of_text_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = chat(messages=[{"role": "developer", "content": parts}, {"role": "assistant", "content": None}])
    assert asked.prompt == [{"role": "system", "content": "ab"}, {"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 1}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "hi"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"seed": 1 << 63}, "seed"),
        ({"n": 2}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 300}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"priority": "urgent"}, "priority"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 0.5}, "deadline_ms"),
        ({"engine": "quantum"}, "engine"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict[str, object], param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        chat(**fields)
    assert caught.value.facts["param"] == param
    assert caught.value.message


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_chat(json.dumps({key: value for key, value in ASKED.items() if key != name}).encode(), {})
    assert caught.value.facts["param"] == name


@pytest.mark.parametrize(
    "headers",
    [{"x-kensho-priority": "urgent"}, {"x-kensho-deadline-ms": "soon"}, {"x-kensho-deadline-ms": "nan"},
     {"x-kensho-deadline-ms": "-1"}, {"x-kensho-deadline-ms": "0.001"}],
)  # fmt: skip
def test_a_header_that_makes_no_sense_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(BadRequest):
        chat(headers)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "\xff"}', b"[" * 100_000, b'{"a":' * 9]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    for parse in (parse_chat, parse_completion):
        with pytest.raises(BadRequest):
            parse(body, {})


NAMES = ["model", "messages", "prompt", "stop", "n", "seed", "stream", "stream_options", "tools", "max_tokens"]
ODD = [
    None,
    True,
    -1,
    0,
    1 << 70,
    0.5,
    "",
    "x",
    [],
    ["x"],
    [1],
    [[]],
    {},
    {"role": "user"},
    [{"role": "user"}],
    "\udc80",
]


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(ODD)))
def test_any_body_is_understood_or_refused(fields: dict[str, object]) -> None:
    body = json.dumps(fields).encode()
    for parse in (parse_chat, parse_completion):
        try:
            assert parse(body, {}).model == fields["model"]
        except BadRequest as error:
            assert error.message


def test_a_completion_goes_on_with_one_text() -> None:
    assert parse_completion(b'{"model": "m", "prompt": "Once"}', {}).prompt == "Once"
    assert parse_completion(b'{"model": "m", "prompt": ["Once"]}', {}).prompt == "Once"
    for more in ('"prompt": ["a", "b"]', '"prompt": "a", "echo": true', '"prompt": "a", "best_of": 2', '"prompt": [1]'):
        with pytest.raises(BadRequest):
            parse_completion(f'{{"model": "m", {more}}}'.encode(), {})
