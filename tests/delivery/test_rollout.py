"""kensho.delivery.rollout: who gets a release first."""

import random

from hypothesis import given
from hypothesis import strategies as st

from kensho.delivery.rollout import is_in_rollout

PERCENT = st.integers(0, 100)


@given(st.text(max_size=20), st.text(max_size=20), PERCENT, PERCENT)
def test_raising_the_percentage_only_adds_machines(salt: str, client: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    assert is_in_rollout(low, salt, client) <= is_in_rollout(high, salt, client)


@given(st.text(max_size=20), st.text(max_size=20))
def test_nobody_is_in_zero_and_everybody_in_a_hundred(salt: str, client: str) -> None:
    assert not is_in_rollout(0, salt, client)
    assert is_in_rollout(100, salt, client)


def test_the_share_of_machines_is_the_percentage() -> None:
    ids = [random.Random(seed).randbytes(16).hex() for seed in range(4000)]
    for percent in (1, 10, 50, 99):
        share = sum(is_in_rollout(percent, "voice/2.0", client) for client in ids) / len(ids)
        assert abs(share - percent / 100) < 0.03


def test_another_salt_is_another_line() -> None:
    ids = [f"client-{n}" for n in range(2000)]
    first = {client for client in ids if is_in_rollout(50, "voice/1.0", client)}
    second = {client for client in ids if is_in_rollout(50, "voice/2.0", client)}
    assert 0.4 < len(first & second) / len(first) < 0.6


def test_the_line_never_changes() -> None:
    """A later Kensho must give the same answers, or a roll-out at 10 percent would reach more than 10 percent."""
    assert [is_in_rollout(50, "voice/2.0", f"client-{n}") for n in range(8)] == FIXED


FIXED = [True, True, False, True, False, False, False, False]
