"""Byte-pair merges: both ways give what the definition gives, for any ranks."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.runtime.text.tokenizer import merge as merging
from kensho.runtime.text.tokenizer.lookup import LEFT, NO_MERGE, RIGHT

RANKS = st.permutations([(left, right) for left in range(4) for right in range(4)])


def by_definition(ids: list[int], ranks: dict[tuple[int, int], int]) -> list[int]:
    ids = list(ids)
    while True:
        found = [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(ids)) if pair in ranks]
        if not found:
            return ids
        rank, at = min(found)
        ids[at : at + 2] = [100 + rank]


@settings(max_examples=30, deadline=None)
@given(order=RANKS, more=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), max_size=40), data=st.data())
def test_both_ways_join_the_lowest_rank_first_and_the_leftmost_of_it(
    order: list[tuple[int, int]], more: list[tuple[int, int]], data: st.DataObject
) -> None:
    pairs = list(dict.fromkeys([*order[:8], *more]))
    ranks = {pair: rank for rank, pair in enumerate(pairs)}
    values = {pair: rank << 24 | (100 + rank) for pair, rank in ranks.items()}
    kinds = bytearray(300)
    for left, right in ranks:
        kinds[left] |= LEFT
        kinds[right] |= RIGHT
    ids = data.draw(st.lists(st.integers(0, 3), max_size=30))
    expected = by_definition(ids, ranks)
    for way in (merging._merge_short, merging._merge_long):
        assert way(list(ids), lambda pair: values.get(pair, NO_MERGE), kinds) == expected


def test_a_long_piece_takes_the_way_that_stays_fast() -> None:
    values = {(0, 0): 1, (1, 1): 1 << 24 | 2, (2, 2): 2 << 24 | 3}
    ids = merging.merge([0] * 10_001, lambda pair: values.get(pair, NO_MERGE), bytes([12] * 4))
    assert ids == [3] * 1250 + [0]
