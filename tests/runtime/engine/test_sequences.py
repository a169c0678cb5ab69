import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kensho.runtime.engine.sequences import MIN_REUSED_IDS, Held, common_beginning

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=90)
LOGITS = np.zeros(1, np.float32)


@settings(max_examples=30, deadline=None)
@given(IDS, IDS, st.integers(0, 90), st.booleans(), st.booleans())
def test_never_another_id_is_kept_and_one_is_left_to_compute_unless_its_logits_are_known(
    held: list[int], ids: list[int], prompt: int, is_interrupted: bool, is_known: bool
) -> None:
    held = ids[: len(held)] + held
    known = {len(ids): LOGITS} if is_known else {}
    kept, goes_on = Held(held, known, is_interrupted).kept_for(ids, min(prompt, len(ids)))
    assert held[:kept] == ids[:kept]
    assert kept < len(ids) or is_known
    assert kept == 0 or kept >= MIN_REUSED_IDS or (is_interrupted and goes_on)


LONG = list(range(100))


@pytest.mark.parametrize(
    ("ids", "prompt", "expected"),
    [
        pytest.param([*LONG, 7, 8], 90, (100, True), id="a token that was handed out, and is not held"),
        pytest.param(LONG, 90, (99, True), id="the last token did not arrive"),
        pytest.param(LONG[:95], 90, (94, True), id="many did not arrive"),
        pytest.param(LONG[:90], 90, (89, False), id="nothing arrived: it may be anybody's"),
        pytest.param([*LONG[:95], 7], 90, (95, False), id="another answer to the same prompt"),
        pytest.param([*LONG[:70], 7], 71, (70, False), id="another prompt"),
        pytest.param([*LONG[:63], 7], 64, (0, False), id="little in common"),
    ],
)
def test_who_goes_on_with_an_interrupted_stream(ids: list[int], prompt: int, expected: tuple[int, bool]) -> None:
    assert Held(LONG, {}, True).kept_for(ids, prompt) == expected


@pytest.mark.parametrize(
    ("ids", "prompt", "expected"),
    [
        pytest.param([1, 2, 3, 4], 2, (3, True), id="it goes on"),
        pytest.param([1, 2, 9], 2, (0, False), id="another answer to the same prompt"),
        pytest.param([1, 2, 3, 4], 4, (0, False), id="a canary, which begins like it"),
        pytest.param([1, 2, 3, 4, 5], 4, (0, False), id="a longer prompt, which begins like it"),
    ],
)
def test_a_short_one_goes_on_only_with_its_own_tokens(ids: list[int], prompt: int, expected: tuple[int, bool]) -> None:
    assert Held([1, 2, 3], {}, True).kept_for(ids, prompt) == expected
    assert Held([1, 2, 3], {}, False).kept_for(ids, prompt) == (0, False)


def test_logits_go_with_the_ids_that_they_come_after() -> None:
    held = Held([1, 2, 3], {1: LOGITS, 2: LOGITS, 3: LOGITS})
    assert (held.copy(2).ids, list(held.copy(2).logits)) == ([1, 2], [1, 2])
    assert (held.ids, list(held.logits)) == ([1, 2, 3], [1, 2, 3])


def test_the_common_beginning_ends_at_the_first_difference() -> None:
    assert [common_beginning([1, 2, 3], ids) for ids in ([], [1], [1, 2, 4], [1, 2, 3, 4])] == [0, 1, 2, 3]
