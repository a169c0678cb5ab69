"""Added tokens in a text: leftmost, then longest, never overlapping."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.runtime.text.tokenizer.added_tokens import AddedToken, AddedTokens, dump_added, parse_added
from kensho.runtime.text.tokenizer.refuse import TablesRefused

WORDS = st.lists(st.text("ab<]^", min_size=1, max_size=4), min_size=1, max_size=6, unique=True)


@settings(max_examples=30, deadline=None)
@given(words=WORDS, text=st.text("ab<]^", max_size=30))
def test_the_leftmost_and_then_the_longest_is_found(words: list[str], text: str) -> None:
    expected: list[str | int] = []
    at, last = 0, 0
    while at < len(text):
        found = max((word for word in words if text.startswith(word, at)), key=len, default="")
        if not found:
            at += 1
            continue
        expected += [text[last:at]] if last < at else []
        expected.append(words.index(found))
        at = last = at + len(found)
    expected += [text[last:]] if last < len(text) else []
    assert AddedTokens([AddedToken(word, at) for at, word in enumerate(words)]).split(text) == expected


@settings(max_examples=30, deadline=None)
@given(words=WORDS, count=st.integers(0, 6))
def test_tokens_are_read_as_they_were_written(words: list[str], count: int) -> None:
    tokens = [AddedToken(word, 7 * at) for at, word in enumerate(words)]
    raw, normal = parse_added(memoryview(dump_added(tokens[:count], tokens[count:])))
    for part, found in ((tokens[:count], raw), (tokens[count:], normal)):
        assert (found is None) == (not part)
        assert all(found.split(token.text) == [token.id] for token in part if found)


@pytest.mark.parametrize("data", [b"", b"\1\0\0\0\0\0\0\0", b"\xff" * 8, dump_added([AddedToken("a", 1)], [])[:-1]])
def test_a_list_that_is_not_whole_is_refused(data: bytes) -> None:
    with pytest.raises(TablesRefused):
        parse_added(memoryview(data))
