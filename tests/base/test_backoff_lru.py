from hypothesis import given
from hypothesis import strategies as st

from kensho.base.backoff import next_delay_s
from kensho.base.lru import Lru


@given(st.floats(0, 1, exclude_max=True), st.floats(0, 1000))
def test_delay_stays_between_base_and_cap(draw: float, previous_s: float) -> None:
    assert 0.5 <= next_delay_s(previous_s, lambda: draw, base_s=0.5, cap_s=30) <= 30


@given(st.lists(st.tuples(st.sampled_from("gp"), st.integers(0, 5))), st.integers(1, 4))
def test_lru_holds_the_most_recently_used(steps: list[tuple[str, int]], capacity: int) -> None:
    lru: Lru[int, int] = Lru(capacity)
    order: list[int] = []
    for kind, key in steps:
        if kind == "g":
            assert (lru.get(key) is not None) == (key in order)
            if key in order:
                order.remove(key)
                order.append(key)
        else:
            evicted = [k for k, _ in lru.put(key, key)]
            order = [k for k in order if k != key] + [key]
            assert evicted == order[:-capacity]
            order = order[-capacity:]
        assert list(lru) == order
