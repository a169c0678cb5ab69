"""Cuts without a pre-tokenizer: never where a merge could join, and nothing is lost."""

import itertools
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.runtime.text.tokenizer.cuts import Joints, at_groups, at_marks, bit_of, find_groups

MARK = "\u2581"
SIGNS = st.sampled_from("abcZ019.,;(\n\t\u00e9\u4e00\u201c\u2581\U0001f600 \0]^-\\")
PAIRS = st.sets(st.tuples(SIGNS, SIGNS), max_size=12)
TEXTS = st.text(SIGNS, max_size=30)


@settings(max_examples=30, deadline=None)
@given(pairs=PAIRS, text=TEXTS)
def test_a_pattern_of_groups_never_cuts_a_joined_pair(pairs: set[tuple[str, str]], text: str) -> None:
    pairs = {(left, right) for left, right in pairs if right != MARK or left == MARK}
    pieces = re.compile(at_groups(MARK, find_groups(pairs, MARK)), re.DOTALL).findall(text)
    assert "".join(pieces) == text
    for left, right in itertools.pairwise(pieces):
        assert (left[-1], right[0]) not in pairs
        assert left[-1] != MARK


@settings(max_examples=30, deadline=None)
@given(pairs=PAIRS, text=TEXTS.filter(bool))
def test_joints_cut_everything_but_joined_pairs_and_some_that_share_a_bit(
    pairs: set[tuple[str, str]], text: str
) -> None:
    data = bytearray(1 << 13)
    for pair in pairs:
        bit = bit_of(*pair, 1 << 16)
        data[bit >> 3] |= 1 << (bit & 7)
    pieces = Joints(bytes(data)).cut(text)
    assert "".join(pieces) == text
    assert not {(left[-1], right[0]) for left, right in itertools.pairwise(pieces)} & pairs
    if not pairs:
        assert all(len(piece) == 1 for piece in pieces)


@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
def test_metaspaces_split_begins_a_piece_at_each_mark(text: str) -> None:
    pieces = re.compile(at_marks(MARK), re.DOTALL).findall(text)
    assert "".join(pieces) == text
    assert all(MARK not in piece[1:] for piece in pieces)
    assert all(piece[0] == MARK for piece in pieces[1:])
